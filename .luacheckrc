std = "luajit"
max_line_length = 120
max_cyclomatic_complexity = 15
files["tests/spec"] = { std = "luajit+busted" }
exclude_files = { "build/**", "output/**" }
