-- The documents: the recipe in README.md runs as it stands there, and links and named files exist.
local fs = require "saelua.fs"
local host = require "saelua.host"
local program = require "tests.support.program"

local root = os.getenv "SAELUA_ROOT" or "."

local function documents()
  local list = { "README.md", "CONTRIBUTING.md", "CHANGELOG.md" }
  for _, folder in ipairs { "docs", "docs/decisions" } do
    for _, name in ipairs(assert(fs.list(root .. "/" .. folder))) do
      if name:find "%.md$" then list[#list + 1] = folder .. "/" .. name end
    end
  end
  return list
end

describe("the documents", function()
  it("show a recipe that runs", function()
    local dir = program.folder()
    local recipe = assert(program.read(root .. "/README.md"):match("\n```lua\n(.-)\n```"), "README.md: no lua block")
    program.write(dir .. "/r.lua", recipe .. "\n")
    local result = program.run { "r.lua", "--steps", "25", "--k", "8", folder = dir }
    host.remove_tree(dir)
    assert.equal("", result.err)
    assert.equal(0, result.status)
    assert.truthy(result.out:find "^step 25: FVU 0%.%d+\nlayers%.1%.resid_post: held%-out explained variance 0%.%d+")
  end)

  it("link to files that exist", function()
    for _, path in ipairs(documents()) do
      local folder = path:match("^(.*/)") or ""
      for target in program.read(root .. "/" .. path):gmatch("%]%(([^)#%s]+)") do
        if not target:find "^%a+:" then
          assert.truthy(fs.exists(root .. "/" .. folder .. target), path .. " links to " .. target)
        end
      end
    end
  end)

  it("name files that exist", function()
    for _, path in ipairs(documents()) do
      for name in program.read(root .. "/" .. path):gmatch("`([%w_/]+/[%w_]+%.[%w]+)`") do
        if name:find "^core/" or name:find "^kernels/" or name:find "^lua/" or name:find "^recipes/"
          or name:find "^tests/" or name:find "^docs/" then
          assert.truthy(fs.exists(root .. "/" .. name), path .. " names " .. name)
        end
      end
    end
  end)
end)
