-- luacheck's settings; run by ./dev lint.
std = "luajit"
max_line_length = 120
max_cyclomatic_complexity = 15
files["tests/spec"] = { std = "luajit+busted" }
files["tests/support"] = { std = "luajit+busted" }
files["recipes"] = { read_globals = { "sl" } }
exclude_files = { "build/**", "output/**" }
