--- The terminal: colours, width, and lines that do not collide with a live progress bar.
-- @module saelua.console
local console = {}

local codes = { bold = "1", dim = "2", red = "31", green = "32", yellow = "33", blue = "34", cyan = "36" }
local host_module

local function host()
  if host_module == nil then
    local ok, module = pcall(require, "saelua.host")
    host_module = ok and module or false
  end
  return host_module
end

local fds = { [io.stdin] = 0, [io.stdout] = 1, [io.stderr] = 2 }

--- Whether a standard stream is a terminal.
-- @tparam file stream `io.stdin`, `io.stdout` or `io.stderr`; others are not
-- @treturn boolean
function console.is_tty(stream)
  local fd = fds[stream]
  return fd ~= nil and host() ~= false and host().is_tty(fd)
end

--- Columns of the terminal behind a stream; 100 where there is none.
-- @tparam[opt=io.stdout] file stream
-- @treturn integer
function console.width(stream)
  local fd = fds[stream or io.stdout]
  local width = fd and host() and host().terminal_width(fd)
  return width or tonumber(os.getenv("COLUMNS")) or 100
end

--- Whether colours suit a stream: a terminal, and neither NO_COLOR nor TERM=dumb.
function console.has_colour(stream)
  if os.getenv("NO_COLOR") or os.getenv("TERM") == "dumb" then return false end
  return console.is_tty(stream)
end

--- Text in a colour or weight when the stream shows it, else the text itself.
-- @tparam string text
-- @tparam string style bold, dim, red, green, yellow, blue or cyan
-- @tparam[opt=io.stdout] file stream
-- @treturn string
function console.style(text, style, stream)
  if not console.has_colour(stream or io.stdout) then return text end
  return ("\27[%sm%s\27[0m"):format(assert(codes[style], style), text)
end

--- The live bar, if any: an object with `hide()` and `show()`. Set by `saelua.progress`.
console.live = nil

--- Prints one line to a stream, above the live bar if there is one.
-- @tparam string text
-- @tparam[opt=io.stderr] file stream
function console.line(text, stream)
  stream = stream or io.stderr
  local live = console.live
  if live then live:hide() end
  if stream == io.stderr then io.stdout:flush() end
  stream:write(text, "\n")
  stream:flush()
  if live then live:show() end
end

--- Prints "warning: text" to standard error.
function console.warn(text) console.line(console.style("warning:", "yellow", io.stderr) .. " " .. text) end

--- Leaves the terminal clean: ends a live bar's line. Called by the host before it reports an error or exits.
function console.cleanup()
  local live = console.live
  console.live = nil
  if live then live:abandon() end
  io.stdout:flush()
end

return console
