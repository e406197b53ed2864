--- Documents from files, folders and standard input.
--
-- A document is a non-empty line of a `.txt` file, or a row of a `.jsonl` file. The text column of a row is the one
-- named by `text_column`, else the column `text`, else the first column whose name contains one of text, content,
-- sentence, question, context, article, passage, document, messages, conversation, dialogue, chat (in this order), else
-- the first column. Chat rows (a list of { role, content }) become `role: content` paragraphs.
-- @module saelua.text
local fs = require "saelua.fs"
local json = require "saelua.json"
local strict = require "saelua.strict"
local suggest = require "saelua.suggest"

local text = {}

local COLUMN_WORDS = {
  "text", "content", "sentence", "question", "context", "article", "passage", "document",
  "messages", "conversation", "dialogue", "chat",
}

-- The keys of a JSON object in the order written: cjson forgets it, and "the first column" needs it.
local function first_key(line) return line:match('^%s*{%s*"([^"\\]+)"') end

local function sorted_keys(row)
  local keys = suggest.keys(row)
  table.sort(keys)
  return keys
end

--- The column of a row that holds its text.
-- @tparam table row decoded JSON object
-- @tparam string line the line it came from
-- @tparam[opt] string wanted
-- @treturn ?string name, or nil and a message
function text.find_column(row, line, wanted)
  if wanted then
    if row[wanted] ~= nil then return wanted end
    return nil, ("no column '%s'%s"):format(wanted, suggest.hint(wanted, sorted_keys(row)))
  end
  if row.text ~= nil then return "text" end
  for _, word in ipairs(COLUMN_WORDS) do
    for _, key in ipairs(sorted_keys(row)) do
      if key:lower():find(word, 1, true) then return key end
    end
  end
  local first = first_key(line) or sorted_keys(row)[1]
  if first then return first end
  return nil, "the row has no columns"
end

--- The text of a column's value: a string as it is, a chat as paragraphs `role: content`.
-- @param value
-- @treturn ?string or nil for anything else
function text.flatten(value)
  if type(value) == "string" then return value end
  if type(value) ~= "table" then return nil end
  local parts = {}
  for _, turn in ipairs(value) do
    if type(turn) == "string" then
      parts[#parts + 1] = turn
    elseif type(turn) == "table" and type(turn.content or turn.value) == "string" then
      parts[#parts + 1] = ("%s: %s"):format(tostring(turn.role or turn.from or "user"), turn.content or turn.value)
    end
  end
  return #parts > 0 and table.concat(parts, "\n\n") or nil
end

-- The lines of an open file. Not file:lines(), which loses what follows a NUL byte.
local function lines_of(file)
  local BLOCK = 65536
  local block, at, open = "", 1, true
  return function()
    local parts = {}
    while true do
      local stop = block:find("\n", at, true)
      if stop then
        parts[#parts + 1] = block:sub(at, stop - 1)
        at = stop + 1
        return table.concat(parts)
      end
      parts[#parts + 1] = block:sub(at)
      local more = open and file:read(BLOCK)
      if not more then
        open, block, at = false, "", 1
        local rest = table.concat(parts)
        return rest ~= "" and rest or nil
      end
      block, at = more, 1
    end
  end
end

-- Documents of an open text file.
local function text_lines(file)
  local lines = file.next_line or lines_of(file)
  return function()
    for line in lines do
      if line:find("%S") then return (line:gsub("\r$", "")) end
    end
    file:close()
  end
end

-- Documents of an open JSON Lines file; the column is found at the first row and kept.
local function json_rows(file, path, wanted)
  local column, number
  local lines = file.next_line or lines_of(file)
  number = 0
  return function()
    for line in lines do
      number = number + 1
      if line:find("%S") then
        local row, message = json.decode(line)
        if type(row) ~= "table" then
          error(("%s:%d: not a JSON object (%s)"):format(path, number, message or type(row)), 0)
        end
        if not column then
          column, message = text.find_column(row, line, wanted)
          if not column then error(("%s:%d: %s"):format(path, number, message), 0) end
        end
        local document = text.flatten(row[column])
        if not document then
          error(("%s:%d: column '%s' holds no text; name another with --text_column"):format(path, number, column), 0)
        end
        if document:find("%S") then return document end
      end
    end
    file:close()
  end
end

local READERS = {
  txt = function(file) return text_lines(file) end,
  text = function(file) return text_lines(file) end,
  jsonl = json_rows,
  ndjson = json_rows,
}

local function open_file(path, options)
  local kind = (path:match("%.([%w]+)$") or ""):lower()
  local reader = READERS[kind]
  if not reader then
    return nil, ("%s: cannot read '.%s' files; expected .txt (one document a line) or .jsonl (one object a line)")
      :format(path, kind)
  end
  local file, message = io.open(path, "rb")
  if not file then return nil, "cannot open the data set: " .. message end
  return reader(file, path, options.text_column)
end

-- The readable files below a folder, in the order of their names.
local function files_below(folder, out)
  local names, message = fs.list(folder)
  if not names then return nil, message end
  table.sort(names)
  for _, name in ipairs(names) do
    local path = fs.join(folder, name)
    local info = fs.stat(path)
    if info and info.type == "directory" then
      local ok, why = files_below(path, out)
      if not ok then return nil, why end
    elseif READERS[(name:match("%.([%w]+)$") or ""):lower()] then
      out[#out + 1] = path
    end
  end
  return out
end

local function chain(paths, options)
  local i, reader = 0, nil
  return function()
    while true do
      local document = reader and reader()
      if document then return document end
      i = i + 1
      if not paths[i] then return nil end
      local message
      reader, message = open_file(paths[i], options)
      if not reader then error(message, 0) end
    end
  end
end

-- Standard input is JSON Lines when its first line is a JSON object.
local function standard_input(options)
  local rest = lines_of(io.stdin)
  local first = rest()
  if not first then return nil, "standard input is empty" end
  local is_json = first:match("^%s*{") and json.decode(first)
  local input = { close = function() end }
  function input.next_line()
    local line = first
    first = nil
    return line or rest()
  end
  if is_json then return json_rows(input, "standard input", options.text_column) end
  return text_lines(input)
end

--- Documents of a data set, one string at a time.
-- @tparam string source a `.txt` or `.jsonl` file, a folder of them (read in the order of names), or `-`
-- @tparam[opt] table options `text_column`
-- @treturn ?function iterator; or nil and a message
function text.documents(source, options)
  options = strict.options("text.documents", options, { text_column = strict.optional })
  if source == "-" then return standard_input(options) end
  local info, message = fs.stat(source)
  if not info then return nil, message end
  if info.type ~= "directory" then return open_file(source, options) end
  local paths, why = files_below(source, {})
  if not paths then return nil, why end
  if #paths == 0 then return nil, ("%s: no .txt or .jsonl file in this folder"):format(source) end
  return chain(paths, options)
end

return text
