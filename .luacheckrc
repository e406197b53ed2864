-- luacheck's settings; run by ./dev lint.
std = "luajit"
max_line_length = 120
max_cyclomatic_complexity = 15
files["tests/spec"] = { std = "luajit+busted" }
files["tests/support"] = { std = "luajit+busted" }
-- A recipe is one flat script: its main chunk counts every option's `or`.
files["recipes"] = { max_cyclomatic_complexity = false }
exclude_files = { "build/**", "output/**" }
