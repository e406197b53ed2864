-- BatchTopK, GroupMax and JumpReLU from Lua: what they select is what a dense reference selects, they train, and what
-- they do not define is refused.
local sl = require "saelua"

local function refused(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  if not message:find(pattern, 1, true) then error(("message %q lacks %q"):format(message, pattern), 2) end
end

local D, M, K = 8, 32, 4

-- Sparse mixtures of fixed directions, plus an offset: what a dictionary can find.
local function batch(step)
  local atoms = sl.normalize_rows_(sl.randn({ 16, D }, { seed = 99 }))
  local weights = sl.rand({ 256, 16 }, { seed = 5, step = step }):relu()
  return (weights * weights:gt_scalar(0.8)):matmul(atoms) + 0.3
end

describe("other activations", function()
  local x = batch(1)

  for name, options in pairs {
    batchtopk = {}, groupmax = {}, ["batchtopk with AuxK, in pieces"] = { auxk_alpha = 1 / 32,
      dead_feature_threshold = 500, micro_acc_steps = 3 },
    ["groupmax with AuxK and multi-TopK"] = { auxk_alpha = 1 / 32, dead_feature_threshold = 500, multi_alpha = 1 / 8 },
  } do
    it("train: " .. name, function()
      local sae = sl.sae[name:match "^%a+"] { d_in = D, d_sae = M, k = K, seed = 1 }
      local optim = sl.sae_optim(sae)
      local first, last
      for step = 1, 60 do
        local now = batch(step)
        if step == 1 then sae:init_b_dec("mean", now) end
        local loss = sae:loss(now, options)
        loss:backward()
        optim:step(3e-3)
        first, last = first or loss.loss, loss.loss
        assert.is_true(loss.l0 <= K and loss.l0 > K / 2)
        assert.equal(0, loss.crowded)
      end
      assert.is_true(last < 0.8 * first, ("%g -> %g"):format(first, last))
    end)
  end

  -- The pre-activations as a dense matrix; those of a code must be among them.
  local function pre(sae, input)
    return sl.linear(input - sae:parameter "b_dec", sae:parameter "W_enc", sae:parameter "b_enc"):relu()
  end

  it("batchtopk keeps the largest of the whole batch, also where one token has most of them", function()
    local sae = sl.sae.batchtopk { d_in = D, d_sae = M, k = 2, seed = 1 }
    local loud = sl.concat({ x:slice(1, 1, 3) * 50, x:slice(1, 4) }, 1) -- three tokens want more than 4k
    for _, input in ipairs { x, loud } do
      local p = pre(sae, input)
      local kept = p:reshape(1, -1):topk(2 * 256)
      local least = kept:select(2, 512):item()
      local loss = sae:loss(input)
      local dense = loss:codes():to_dense()
      assert.is_true((dense - p * p:gt_scalar(least - 1e-6)):abs():max():item() < 1e-3)
      assert.equal(512, loss:codes():nnz())
      assert.equal(2, loss.l0)
      assert.equal(0, (sae:encode(input, { k = 2 }):to_dense() - dense):abs():max():item())
      local pieces = sae:loss(input, { micro_acc_steps = 4 })
      assert.equal(0, (pieces:codes():to_dense() - dense):abs():max():item())
    end
  end)

  it("batchtopk follows the least value kept as SAELens does, and encodes by the mean", function()
    local sae = sl.sae.batchtopk { d_in = D, d_sae = M, k = 2, seed = 1, topk_threshold_lr = 0.1 }
    assert.equal((pre(sae, x):gt_scalar(0)):sum():item(), sae:encode(x):nnz()) -- nothing was seen yet
    local mean = 0
    for step = 1, 4 do
      local loss = sae:loss(batch(step))
      local _, _, values = loss:codes():tensors()
      mean = 0.9 * mean + 0.1 * values:min():item()
      assert.is_true(sae:encode(x):nnz() >= 0) -- looking changes nothing
      loss:backward()
      local now = sae:parameter("threshold"):totable()
      assert.is_true(math.abs(now[1] * now[2] - mean) < 1e-6)
    end
    local threshold = mean / (1 - 0.9 ^ 4) -- SAELens' mean without the zero that it starts from
    local p = pre(sae, x)
    assert.is_true((sae:encode(x):to_dense() - p * p:gt_scalar(threshold)):abs():max():item() < 1e-5)
    assert.equal(sae:encode(x):nnz(), (p:gt_scalar(threshold)):sum():item())
  end)

  it("groupmax takes one latent of each group", function()
    local sae = sl.sae.groupmax { d_in = D, d_sae = M, k = K, seed = 1 }
    local best = pre(sae, x):reshape(256 * K, M / K):topk(1):reshape(256, K)
    local dense = sae:encode(x):to_dense()
    local groups = dense:reshape(256 * K, M / K)
    assert.is_true((groups:sum(2):reshape(256, K) - best):abs():max():item() < 1e-5)
    assert.equal(1, groups:gt_scalar(0):sum(2):max():item())
    assert.equal(256 * 2, sae:encode(x, { k = 2 }):nnz()) -- wider groups
  end)

  it("jumprelu has rows of any length", function()
    local threshold = sl.rand({ 2000 }, { seed = 3 }):relu() * 0.1
    local sae = sl.sae.jumprelu { d_in = D, d_sae = 2000, seed = 2, threshold = threshold }
    local p = pre(sae, x)
    local dense = sae:encode(x):to_dense() -- half of 2000: more than the room that rows are given at first
    assert.is_true((dense - p * (p - threshold):gt_scalar(0)):abs():max():item() < 1e-5)
    assert.is_true(dense:gt_scalar(0):sum(2):max():item() > 600)
  end)

  it("refuse what they do not define", function()
    refused("32 latents do not split into k = 5 groups", sl.sae.groupmax, { d_in = D, d_sae = M, k = 5 })
    local groups = sl.sae.groupmax { d_in = D, d_sae = M, k = K }
    refused("k = 3 does not divide 32", groups.loss, groups, x, { k = 3 })
    refused("k = 3 does not divide 32", groups.encode, groups, x, { k = 3 })
    local batches = sl.sae.batchtopk { d_in = D, d_sae = M, k = K }
    refused("multi-TopK", batches.loss, batches, x, { multi_alpha = 0.1 })
    refused("topk_threshold_lr", sl.sae.batchtopk, { d_in = D, d_sae = M, k = K, topk_threshold_lr = 0 })
    refused("topk_threshold_lr", sl.sae.topk, { d_in = D, d_sae = M, k = K, topk_threshold_lr = 0.1 })
    local thresholds = sl.sae.jumprelu { d_in = D, d_sae = M }
    refused("not trained here yet", thresholds.loss, thresholds, x)
    refused("k = 3", thresholds.encode, thresholds, x, { k = 3 })
    refused('unknown option "k"', sl.sae.jumprelu, { d_in = D, d_sae = M, k = K })
    refused("no activation is called", sl.new_sae, { d_in = D, d_sae = M, k = K, activation = "relu" })
  end)
end)
