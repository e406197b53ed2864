--- Files and folders. Failures of the world return nil, a message with the path, and an errno.
-- Needs the `saelua` program; path arithmetic, `read` and `exists` work anywhere.
-- @module saelua.fs
local fs = {}

local EEXIST = 17

-- The host's file system calls are needed only when one is made.
setmetatable(fs, {
  __index = function(_, name)
    local host = require "saelua.host"
    local forwarded = {
      list = true, stat = true, rename = true, remove = true, remove_tree = true, sync_dir = true,
      sync_file = true, truncate = true, writable = true, free_space = true, cwd = true, realpath = true,
    }
    if forwarded[name] then return host[name] end
    error("fs has no function '" .. tostring(name) .. "'", 2)
  end,
})

--- Joins path components; an absolute one starts anew.
-- @tparam string ...
-- @treturn string
function fs.join(...)
  local path = ""
  for i = 1, select("#", ...) do
    local part = select(i, ...)
    if part:sub(1, 1) == "/" or path == "" then
      path = part
    elseif part ~= "" then
      path = path:gsub("/+$", "") .. "/" .. part
    end
  end
  return path
end

--- The last component.
function fs.basename(path) return (path:gsub("/+$", ""):match("[^/]*$")) end

--- All but the last component; "." when there is none.
function fs.dirname(path)
  path = path:gsub("/+$", "")
  local dir = path:match("^(.*)/[^/]*$")
  if dir == nil then return "." end
  return dir == "" and "/" or dir
end

--- Whether something of that name can be opened or listed.
function fs.exists(path)
  local file = io.open(path, "rb")
  if file then file:close() end
  return file ~= nil
end

--- Creates a folder and its parents; an existing folder is fine.
-- @tparam string path
-- @treturn ?boolean true, or nil, message, errno
function fs.mkdir(path)
  local host = require "saelua.host"
  local ok, message, code = host.mkdir(path)
  if ok then return true end
  local info = host.stat(path)
  if info and info.type == "directory" then return true end
  local parent = fs.dirname(path)
  if code == EEXIST or parent == path or host.stat(parent) then return nil, message, code end
  ok, message, code = fs.mkdir(parent)
  if not ok then return nil, message, code end
  ok, message, code = host.mkdir(path)
  if ok or code == EEXIST then return true end
  return nil, message, code
end

--- A whole file as a string.
-- @tparam string path
-- @treturn ?string text, or nil, message, errno
function fs.read(path)
  local file, message, code = io.open(path, "rb")
  if not file then return nil, "cannot open " .. message, code end
  local text
  text, message, code = file:read("*a")
  file:close()
  if not text then return nil, ("cannot read %s: %s"):format(path, message or "is it a folder?"), code end
  return text
end

--- Replaces a file in one step: readers see the old text or the new one, never a part.
-- @tparam string path
-- @tparam string text
-- @treturn ?boolean true, or nil, message, errno
function fs.write(path, text)
  local part = path .. ".part"
  local file, message, code = io.open(part, "wb")
  if not file then return nil, "cannot create " .. message, code end
  local ok
  ok, message, code = file:write(text)
  if ok then ok, message, code = file:flush() end
  file:close()
  if ok then ok, message, code = fs.sync_file(part) end
  if not ok then
    os.remove(part)
    return nil, ("cannot write %s: %s"):format(path, message or "unknown error"), code
  end
  ok, message, code = os.rename(part, path)
  if not ok then return nil, "cannot replace " .. tostring(message), code end
  return fs.sync_dir(fs.dirname(path))
end

return fs
