--- HTML pages made from Lua: escaping, JSON for scripts, the page skeleton, atomic writing.
--
-- A page is one file that opens offline: style and scripts are inside it, and its content security policy
-- forbids every request. This module knows nothing of SAEs; `saelua.report` and later pages are built on it.
-- Every string that comes from outside (tokens, names, paths) passes `escape` or `json` before it is on a page.
--
-- @module saelua.html

local null = require("saelua.json").null
local strict = require "saelua.strict"

local M = {}

local REPLACEMENT = "\239\191\189" -- U+FFFD, stands for bytes that are not UTF-8

-- Well-formed UTF-8 (Unicode 15, table 3-7): first byte from..to, length, limits of the second byte.
local SEQUENCES = {
  { 0x00, 0x7F, 1 }, { 0xC2, 0xDF, 2, 0x80, 0xBF }, { 0xE0, 0xE0, 3, 0xA0, 0xBF }, { 0xE1, 0xEC, 3, 0x80, 0xBF },
  { 0xED, 0xED, 3, 0x80, 0x9F }, { 0xEE, 0xEF, 3, 0x80, 0xBF }, { 0xF0, 0xF0, 4, 0x90, 0xBF },
  { 0xF1, 0xF3, 4, 0x80, 0xBF }, { 0xF4, 0xF4, 4, 0x80, 0x8F },
}

--- Number of bytes of the UTF-8 character that starts at byte `i`, or nil if no valid one does.
local function char_length(s, i)
  local first = s:byte(i)
  for _, row in ipairs(SEQUENCES) do
    if first >= row[1] and first <= row[2] then
      for k = 1, row[3] - 1 do
        local low, high = k == 1 and row[4] or 0x80, k == 1 and row[5] or 0xBF
        local byte = s:byte(i + k)
        if not byte or byte < low or byte > high then return nil end
      end
      return row[3]
    end
  end
  return nil
end

--- The string with every byte that is not part of valid UTF-8 replaced by U+FFFD.
-- @tparam string s any bytes
-- @treturn string valid UTF-8
function M.utf8(s)
  if not s:find("[\128-\255]") then return s end
  local out, i = {}, 1
  while i <= #s do
    local len = char_length(s, i)
    out[#out + 1] = len and s:sub(i, i + len - 1) or REPLACEMENT
    i = i + (len or 1)
  end
  return table.concat(out)
end

local ENTITIES = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;", ["'"] = "&#39;" }

--- A control character as its visible picture (U+2400 block): a reader should see that a token holds one.
local function control_picture(c)
  local code = c:byte()
  return "\226\144" .. string.char(code == 127 and 0xA1 or 0x80 + code)
end

--- Text made safe for element content and for quoted attribute values.
-- Control characters other than line feed and tab become visible pictures; invalid UTF-8 becomes U+FFFD.
-- @param s anything; `tostring` is applied
-- @treturn string
function M.escape(s)
  s = M.utf8(tostring(s))
  s = s:gsub("[&<>\"']", ENTITIES)
  return (s:gsub("[%z\1-\8\11-\31\127]", control_picture))
end

local JSON_ESCAPES = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }

-- '<' is always written as \u003c, so neither "</script" nor "<!--" can occur inside a script element.
local function json_string(s)
  s = M.utf8(s):gsub('[%z\1-\31"\\<\127]', function(c)
    return JSON_ESCAPES[c] or string.format("\\u%04x", c:byte())
  end)
  return '"' .. s:gsub("\226\128([\168\169])", { ["\168"] = "\\u2028", ["\169"] = "\\u2029" }) .. '"'
end

local function json_number(v, digits)
  if v ~= v or v == math.huge or v == -math.huge then return "null" end
  if v == math.floor(v) and math.abs(v) < 2 ^ 53 then return string.format("%.0f", v) end
  return string.format("%." .. digits .. "g", v)
end

local function json_value(v, digits, depth)
  local kind = type(v)
  if kind == "number" then return json_number(v, digits) end
  if kind == "string" then return json_string(v) end
  if kind == "boolean" then return tostring(v) end
  if kind == "nil" or v == null then return "null" end
  if kind ~= "table" then error("html.json: cannot write a value of type " .. kind) end
  if depth > 64 then error("html.json: tables are nested more than 64 deep (a cycle?)") end
  local out = {}
  if #v > 0 or next(v) == nil then
    for i = 1, #v do out[i] = json_value(v[i], digits, depth + 1) end
    return "[" .. table.concat(out, ",") .. "]"
  end
  local keys, by_key = {}, {}
  for k in pairs(v) do
    keys[#keys + 1], by_key[tostring(k)] = tostring(k), k
  end
  table.sort(keys) -- the same data always gives the same bytes
  for i, k in ipairs(keys) do
    out[i] = json_string(k) .. ":" .. json_value(v[by_key[k]], digits, depth + 1)
  end
  return "{" .. table.concat(out, ",") .. "}"
end

--- JSON that may stand inside a script element.
-- NaN and infinities become null (cjson raises on them). An empty table is written as `[]`. Keys are sorted.
-- Unlike `saelua.json` it is safe inside HTML and rounds numbers: for pages, not for files that are read back.
-- @param v nil, `json.null`, boolean, number, string or a tree of tables of these
-- @tparam[opt=14] number digits significant digits of numbers that are not whole
-- @treturn string
function M.json(v, digits)
  return json_value(v, digits or 14, 0)
end

--- Program text made safe for a script element: the two sequences that end or confuse one are broken up.
-- @tparam string js
-- @treturn string
function M.script_text(js)
  js = js:gsub("</([sS][cC][rR][iI][pP][tT])", "<\\/%1"):gsub("<!%-%-", "<\\!--")
  return js
end

--- A number as people read it: thousands separated, `digits` significant digits below a thousand.
-- @tparam ?number v
-- @tparam[opt=4] number digits significant digits
-- @treturn string for example `24,576`, `0.9123`, `3.1e-05`; words for what is absent or not finite
function M.number(v, digits)
  if type(v) ~= "number" then return "not measured" end
  if v ~= v then return "not a number" end
  local size, sign = math.abs(v), v < 0 and "\226\136\146" or ""
  if size == math.huge then return sign .. "infinite" end
  digits = digits or 4
  if size >= 1e15 or (size < 1e-4 and size > 0) then return sign .. string.format("%." .. digits .. "g", size) end
  local text = string.format(size < 1000 and "%." .. digits .. "g" or "%.0f", size)
  local int, rest = text:match("^(%d+)(.*)$")
  int = int:reverse():gsub("(%d%d%d)", "%1,"):reverse():gsub("^,", "")
  return sign .. int .. rest
end

-- The strictest policy that still runs what is inside the page: any request at all is an error in the console.
local POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
  .. "base-uri 'none'; form-action 'none'"

-- One floating note for every element with data-tip: reachable by mouse, keyboard and touch, never off the screen.
local TIPS = [[
(function () {
  'use strict';
  var tip = document.createElement('div');
  tip.className = 'tip'; tip.setAttribute('role', 'tooltip'); tip.hidden = true;
  document.body.appendChild(tip);
  function show(event) {
    var at = event.target.closest ? event.target.closest('[data-tip]') : null;
    if (!at) { tip.hidden = true; return; }
    tip.textContent = at.dataset.tip; tip.hidden = false;
    var box = at.getBoundingClientRect(), own = tip.getBoundingClientRect();
    var left = box.left + box.width / 2 - own.width / 2;
    tip.style.left = Math.max(8, Math.min(left, innerWidth - own.width - 8)) + 'px';
    tip.style.top = (box.top > own.height + 12 ? box.top - own.height - 6 : box.bottom + 6) + 'px';
  }
  ['mouseover', 'focusin', 'click'].forEach(function (name) { document.addEventListener(name, show); });
  document.addEventListener('keydown', function (e) { if (e.key === 'Escape') tip.hidden = true; });
  addEventListener('scroll', function () { tip.hidden = true; }, { passive: true });
}());
]]

local PAGE = { title = strict.required, body = strict.required, scripts = {} }

--- A whole page.
-- @tparam table page `title` (plain text), `body` (HTML), `scripts` (list of program texts, run in this order
--   after the body; optional)
-- @treturn string the HTML document
function M.page(page)
  page = strict.options("html.page", page, PAGE)
  local out = {
    "<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
    '<meta http-equiv="Content-Security-Policy" content="' .. POLICY .. '">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    '<meta name="color-scheme" content="light dark">', '<meta name="generator" content="saelua">',
    '<link rel="icon" href="data:,">', "<title>" .. M.escape(page.title) .. "</title>",
    "<style>", require "saelua.html.style", "</style>", "</head>", "<body>", page.body,
    "<script>" .. M.script_text(TIPS) .. "</script>",
  }
  for _, script in ipairs(page.scripts) do
    out[#out + 1] = "<script>" .. M.script_text(script) .. "</script>"
  end
  out[#out + 1] = "</body>\n</html>\n"
  return table.concat(out, "\n")
end

--- Write a file so that `path` holds either its old content or all of the new one.
-- Like `fs.write` but without a sync to the device and without the host: a page can be written by any LuaJIT.
-- The text goes to `path .. ".tmp"` first and is then renamed. A failure leaves no temporary file behind.
-- @tparam string path
-- @tparam string text
-- @treturn[1] boolean true
-- @treturn[2] nil
-- @treturn[2] string what failed, with the path
-- @treturn[2] number the system's error number
function M.write_file(path, text)
  local tmp = path .. ".tmp"
  local file, msg, code = io.open(tmp, "wb")
  if not file then return nil, "cannot write " .. msg, code end
  local ok
  ok, msg, code = file:write(text)
  local closed, close_msg, close_code = file:close() -- a full disk may show only here, when the buffer is flushed
  if ok and not closed then ok, msg, code = nil, close_msg, close_code end
  if ok then
    ok, msg, code = os.rename(tmp, path)
  else
    msg = tmp .. ": " .. tostring(msg)
  end
  if ok then return true end
  os.remove(tmp)
  return nil, "cannot write " .. path .. ": " .. tostring(msg), code
end

return M
