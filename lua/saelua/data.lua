--- Data: token contexts from text, and SAE training batches from a model's activations.
--
-- **Contexts.** Documents are encoded without special tokens, joined with [SEP], cut into pieces of `ctx_len - 2` and
-- wrapped as `[CLS] piece [SEP]`; the last piece is padded (see `core/data/packing.h`). The last `heldout` share of a
-- file's contexts (storyworld: documents of their own) is never trained on. A finite data set is repeated, each time
-- in a new order that depends on the seed and the repetition alone.
-- @module saelua.data
local core = require "saelua.core"
local fs = require "saelua.fs"
local json = require "saelua.json"
local strict = require "saelua.strict"

local data = {}

-- Streams of the counter-based random numbers: one for each use, so that none disturbs another.
local STREAM_CONTEXTS, STREAM_ROWS = 11, 12

-- Sources ------------------------------------------------------------------------------------------------------

-- A source gives contexts in chunks: chunk(i) -> { ids, mask } or nil beyond the last; heldout() likewise.

local STORY_CHUNK, STORY_HELDOUT_FIRST, STORY_HELDOUT = 512, 2 ^ 30, 256

local function story_source(tokenizer, options)
  local storyworld = require "saelua.storyworld"
  local function pack(first, n, offsets)
    local packer = core.packer(tokenizer, { ctx_len = options.ctx_len, offsets = offsets })
    for document in storyworld.documents { seed = options.seed, start = first, n = n } do packer:push(document.text) end
    return packer:finish()
  end
  return {
    name = "storyworld", finite = false,
    chunk = function(i) return pack(i * STORY_CHUNK, STORY_CHUNK) end,
    heldout = function() return pack(STORY_HELDOUT_FIRST, STORY_HELDOUT, true) end,
    heldout_document = function(i) return storyworld.document(options.seed, STORY_HELDOUT_FIRST + i) end,
  }
end

local function slice_contexts(all, first, last)
  local part = {}
  for name, tensor in pairs(all) do
    part[name] = type(tensor) == "userdata" and tensor:slice(1, first, last):contiguous() or nil
  end
  part.n = last - first + 1
  return part
end

local function file_source(path, tokenizer, options)
  local text = require "saelua.text"
  local documents, message = text.documents(path, { text_column = options.text_column })
  if not documents then error(message, 0) end
  local packer = core.packer(tokenizer, { ctx_len = options.ctx_len })
  local n = 0
  for document in documents do
    packer:push(document)
    n = n + 1
    if options.max_documents and n >= options.max_documents then break end
  end
  local all = packer:finish()
  if n == 0 then error(("%s: the data set is empty: it has no document with text in it"):format(path), 0) end
  if all.n < 2 then
    error(("%s: %d document%s give %d context of %d tokens; at least 2 are needed (one is held out). Use more text "
      .. "or a smaller --ctx_len"):format(path, n, n == 1 and "" or "s", all.n, options.ctx_len), 0)
  end
  local held = math.max(1, math.floor(all.n * options.heldout))
  local train, heldout = slice_contexts(all, 1, all.n - held), slice_contexts(all, all.n - held + 1, all.n)
  return {
    name = path, finite = true, documents = n,
    chunk = function(i) return i == 0 and train or nil end,
    heldout = function() return heldout end,
  }
end

--- Documents of a data set as strings.
-- @tparam string source as for `data.tokens`
-- @tparam[opt] table options `seed` (42, storyworld), `n` (at most so many; storyworld: 1000), `text_column`
-- @treturn function iterator
function data.documents(source, options)
  local o = strict.options("data.documents", options, { seed = 42, n = strict.optional, text_column = strict.optional })
  if source == "storyworld" then
    local stories = require("saelua.storyworld").documents { seed = o.seed, n = o.n or 1000 }
    return function()
      local story = stories()
      return story and story.text
    end
  end
  local documents, message = require("saelua.text").documents(source, { text_column = o.text_column })
  if not documents then error(message, 0) end
  local left = o.n or math.huge
  return function()
    left = left - 1
    return left >= 0 and documents() or nil
  end
end

-- Tokens -------------------------------------------------------------------------------------------------------

local Tokens = {}
Tokens.__index = Tokens

local TOKEN_OPTIONS = {
  ctx_len = 128, seed = 42, heldout = 0.05, text_column = strict.optional, max_documents = strict.optional,
}

local function check_token_options(o)
  if o.ctx_len % 1 ~= 0 or o.ctx_len < 4 then
    error(("ctx_len must be an integer of at least 4, not %s"):format(tostring(o.ctx_len)), 3)
  end
  if not (o.heldout > 0 and o.heldout < 1) then
    error(("heldout is a share between 0 and 1, not %s"):format(tostring(o.heldout)), 3)
  end
end

--- Token contexts of a data set.
-- @tparam string source `"storyworld"` (built in, endless), a `.txt` or `.jsonl` file, a folder of them, or `"-"`
-- @tparam Tokenizer tokenizer the model's
-- @tparam[opt] table options `ctx_len` (128), `seed` (42: order), `heldout` (0.05: share kept from training),
--   `text_column`, `max_documents`
-- @treturn Tokens
function data.tokens(source, tokenizer, options)
  local o = strict.options("data.tokens", options, TOKEN_OPTIONS)
  check_token_options(o)
  local from = source == "storyworld" and story_source(tokenizer, o) or file_source(source, tokenizer, o)
  return setmetatable({
    source = from, tokenizer = tokenizer, ctx_len = o.ctx_len, seed = o.seed,
    special_ids = tokenizer:special_ids(),
    chunk = -1, epoch = 0, index = 0, contexts = nil, order = nil,
  }, Tokens)
end

-- Makes the chunk and its order current. Chunks of a finite source repeat with the epoch.
function Tokens:open_chunk(chunk, epoch)
  local contexts = self.source.chunk(chunk)
  if not contexts then
    chunk, epoch = 0, epoch + 1
    contexts = self.source.chunk(0)
  end
  self.contexts, self.chunk, self.epoch, self.index = contexts, chunk, epoch, 0
  self.order = core.randperm(contexts.n, { seed = self.seed, stream = STREAM_CONTEXTS, step = epoch * 65536 + chunk })
end

-- The tensors of a chunk live on between calls, whatever scope the caller is in.
local function open_unscoped(tokens, chunk, epoch)
  core.unscoped(function() tokens:open_chunk(chunk, epoch) end)
end

--- The next contexts in shuffled order; fewer than asked for at the end of a chunk.
-- @tparam integer n
-- @treturn Tensor ids, i32 [<= n, ctx_len]
-- @treturn Tensor mask, u8 of the same shape, 0 = padding
function Tokens:next(n)
  if not self.contexts or self.index >= self.contexts.n then open_unscoped(self, self.chunk + 1, self.epoch) end
  local last = math.min(self.index + n, self.contexts.n)
  local rows = self.order:slice(1, self.index + 1, last)
  self.index = last
  return core.pick_contexts(self.contexts.ids, rows), core.pick_contexts(self.contexts.mask, rows)
end

--- Where the stream stands, for a checkpoint.
-- @treturn table
function Tokens:state() return { chunk = self.chunk, epoch = self.epoch, index = self.index } end

--- Continues where `state` was taken.
-- @tparam table state
-- @treturn boolean whether this data set has such a position; without it the stream starts anew
function Tokens:restore(state)
  self.contexts, self.chunk, self.epoch, self.index = nil, -1, 0, 0
  if state.chunk < 0 then return true end
  open_unscoped(self, state.chunk, state.epoch)
  if self.chunk ~= state.chunk or state.index > self.contexts.n then
    self.contexts, self.chunk, self.epoch, self.index = nil, -1, 0, 0
    return false
  end
  self.index = state.index
  return true
end

--- How often the data set has been used up so far.
-- @treturn integer
function Tokens:repetitions() return self.epoch end

--- The contexts that are never trained on.
-- @treturn table `ids`, `mask` (tensors [n, ctx_len]), `n`; storyworld also `document`, `start`, `finish` (i32, which
--   document and bytes a token came from)
function Tokens:heldout()
  if not self.held then core.unscoped(function() self.held = self.source.heldout() end) end
  return self.held
end

-- Activations --------------------------------------------------------------------------------------------------

local Activations = {}
Activations.__index = Activations

local ACTIVATION_OPTIONS = {
  at = strict.required, batch_size = 32, batch_tokens = strict.optional, buffer_batches = 8, exclude = strict.optional,
}

--- A buffer that mixes activations across sequences and feeds batches of fixed size.
--
-- It holds `buffer_batches * batch_tokens` rows for each hookpoint; when it is used up, the model runs on new contexts
-- until it is full, and rows leave it in a random order. Rows of special and padding tokens never enter. The same
-- rows leave for every hookpoint, so a batch of several layers is aligned token by token.
-- @tparam Model model
-- @tparam Tokens tokens
-- @tparam table options `at` (hookpoint names), `batch_size` (32: sequences per forward), `batch_tokens` (rows per
--   batch; `batch_size * ctx_len`), `buffer_batches` (8), `exclude` (token ids left out; the special ones)
-- @treturn Activations
function data.activations(model, tokens, options)
  local o = strict.options("data.activations", options, ACTIVATION_OPTIONS)
  local self = setmetatable({
    model = model, tokens = tokens, at = model:hookpoints(o.at), batch_size = o.batch_size,
    batch_tokens = o.batch_tokens or o.batch_size * tokens.ctx_len,
    exclude = o.exclude or tokens.special_ids, fills = 0, served = 0, count = 0, carry = {},
  }, Activations)
  if tokens.ctx_len > model.max_positions then
    error(("ctx_len %d is more than the %d positions of %s"):format(tokens.ctx_len, model.max_positions, model.name), 2)
  end
  -- A forward adds at most batch_size * ctx_len rows; the rest of the buffer must take a whole batch.
  local forward_rows = o.batch_size * tokens.ctx_len
  self.capacity = math.max(o.buffer_batches * self.batch_tokens, self.batch_tokens + forward_rows)
  self.forward_rows = forward_rows
  return self
end

-- Room for the rows; made at the first fill, when the width is known.
function Activations:make_buffers(hidden)
  self.buffers = {}
  for _, name in ipairs(self.at) do
    self.buffers[name] = core.zeros({ self.capacity, hidden[name]:size(3) }, { device = hidden[name]:device() })
  end
end

-- Copies rows of a forward pass behind the `count` rows that are there.
function Activations:append(ids, mask, hidden)
  local kept = core.kept_positions(ids, self.exclude, mask)
  local n = kept:size(1)
  if n == 0 then return end
  for _, name in ipairs(self.at) do
    local h = hidden[name]
    local rows = core.gather_rows(h:reshape(-1, h:size(3)), kept)
    self.buffers[name]:slice(1, self.count + 1, self.count + n):copy_(rows)
  end
  self.count = self.count + n
end

-- Rows that are left when fewer than a batch remain: they open the next fill.
function Activations:keep_rest()
  self.carry = {}
  if self.buffers and self.served < self.count then
    local rest = self.order:slice(1, self.served + 1, self.count)
    for _, name in ipairs(self.at) do self.carry[name] = core.gather_rows(self.buffers[name], rest) end
  end
end

function Activations:fill()
  self.fill_state = self.tokens:state()
  self.fills, self.served, self.count = self.fills + 1, 0, 0
  local empty = 0
  while self.count + self.forward_rows <= self.capacity do
    core.scope(function()
      local before = self.count
      local ids, mask = self.tokens:next(self.batch_size)
      local out = self.model:forward(ids, { mask = mask, capture = self.at })
      if not self.buffers then core.unscoped(function() self:make_buffers(out.hidden) end) end
      if self.count == 0 then self:restore_carry() end
      self:append(ids, mask, out.hidden)
      empty = self.count > before and 0 or empty + 1
    end)
    if empty > 100 then
      error("100 batches in a row had no token to train on: every token is special or excluded", 0)
    end
  end
  self.order = core.randperm(self.count, { seed = self.tokens.seed, stream = STREAM_ROWS, step = self.fills })
end

function Activations:restore_carry()
  for _, name in ipairs(self.at) do
    local rows = self.carry[name]
    if rows then
      self.buffers[name]:slice(1, 1, rows:size(1)):copy_(rows)
      self.count = rows:size(1)
    end
  end
end

--- The next batch.
-- @treturn {[string]=Tensor} hookpoint -> rows [batch_tokens, d_model]
function Activations:next()
  if not self.order or self.served + self.batch_tokens > self.count then
    core.unscoped(function()
      self:keep_rest()
      self:fill()
    end)
  end
  local rows = self.order:slice(1, self.served + 1, self.served + self.batch_tokens)
  self.served = self.served + self.batch_tokens
  local batch = {}
  for _, name in ipairs(self.at) do batch[name] = core.gather_rows(self.buffers[name], rows) end
  return batch
end

--- What the buffer takes, in bytes.
-- @treturn integer
function Activations:memory()
  return #self.at * self.capacity * self.model.d_model * 4
end

--- Writes what is needed to continue with the same batches: the stream at the last fill, the rows carried into it, and
-- how much was served. The other rows are computed again, bit for bit.
-- @tparam string folder
-- @treturn ?boolean true, or nil and a message
function Activations:save_state(folder)
  local state = { tokens = self.fill_state or self.tokens:state(), fills = self.fills, served = self.served }
  local carried = {}
  for _, name in ipairs(self.at) do
    if self.carry[name] then carried[#carried + 1] = { name, self.carry[name] } end
  end
  local ok, message = core.save_tensors(fs.join(folder, "carry.safetensors"), carried)
  if not ok then return nil, message end
  return json.write(fs.join(folder, "data.json"), state)
end

local function is_count(value, least)
  return type(value) == "number" and value % 1 == 0 and value >= least and value <= 2 ^ 40
end

local function check_state(state)
  local t = type(state) == "table" and state.tokens
  return type(t) == "table" and is_count(t.chunk, -1) and is_count(t.epoch, 0) and is_count(t.index, 0)
    and is_count(state.fills, 0) and is_count(state.served, 0)
end

-- Rows carried into a fill: fewer than a batch, equally many for every hookpoint, or none at all.
local function check_carry(self, carry)
  local n
  for name, rows in pairs(carry) do
    if rows:dtype() ~= "f32" or rows:dim() ~= 2 or rows:size(1) >= self.batch_tokens or (n and n ~= rows:size(1)) then
      return false
    end
    local known = false
    for _, at in ipairs(self.at) do known = known or (at == name and rows:size(2) == self.model:width(at)) end
    if not known then return false end
    n = rows:size(1)
  end
  if not n then return true end
  for _, at in ipairs(self.at) do
    if not carry[at] then return false end
  end
  return true
end

--- Continues where save_state was called; runs the model to fill the buffer again.
-- @tparam string folder
-- @treturn ?boolean true, or nil and a message
function Activations:load_state(folder)
  local path = fs.join(folder, "data.json")
  local state, message = json.read(path)
  if type(state) ~= "table" or not check_state(state) then return nil, message or path .. ": not a data position" end
  local carry_path = fs.join(folder, "carry.safetensors")
  local carry, why = core.load_tensors(carry_path)
  if not carry then return nil, why end
  if not check_carry(self, carry) then
    return nil, carry_path .. ": not the rows that this run could have left over"
  end
  if not self.tokens:restore(state.tokens) then return nil, path .. ": a position that this data set does not have" end
  self.carry, self.order = carry, nil
  self.fills, self.served, self.count = state.fills, 0, 0
  if state.fills == 0 then return true end
  self.fills = state.fills - 1
  core.unscoped(function() self:fill() end)
  if state.served > self.count then return nil, path .. ": more rows served than the buffer holds" end
  self.served = state.served
  return true
end

function Activations:state_bytes() return #self.at * self.batch_tokens * self.model.d_model * 4 end

return data
