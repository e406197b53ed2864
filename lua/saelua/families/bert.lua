--- The BERT family (Devlin et al. 2018) as transformers has it: how config.json becomes a model spec, which weight
-- goes where, and what its hook points are called elsewhere. Data only; saelua.families reads it.
-- @module saelua.families.bert

return {
  name = "bert",
  model_type = "bert",
  architectures = "^Bert", -- stands in for model_type in configs of 2018
  architecture = { mlm = "BertForMaskedLM", none = "BertModel" },

  -- Spec field = config key. What transformers assumes when a key is absent stands in `defaults`.
  sizes = {
    n_layers = "num_hidden_layers", d_model = "hidden_size", n_heads = "num_attention_heads",
    d_mlp = "intermediate_size", vocab_size = "vocab_size", max_positions = "max_position_embeddings",
    n_types = "type_vocab_size",
  },
  defaults = {
    type_vocab_size = 2, layer_norm_eps = 1e-12, hidden_act = "gelu", position_embedding_type = "absolute",
    tie_word_embeddings = true, is_decoder = false, add_cross_attention = false, initializer_range = 0.02,
    pad_token_id = 0, max_position_embeddings = 512,
  },
  norm_eps = "layer_norm_eps",
  activation = {
    key = "hidden_act",
    values = {
      gelu = "gelu", gelu_python = "gelu", gelu_new = "gelu_tanh", gelu_pytorch_tanh = "gelu_tanh",
      gelu_fast = "gelu_tanh", relu = "relu", tanh = "tanh",
    },
  },
  fixed = { norm = "layer", norm_place = "post", position = "absolute" },
  -- Config keys with one acceptable value, and why.
  only = {
    { "position_embedding_type", "absolute", "relative positions are not built" },
    { "is_decoder", false, "BERT as a decoder (causal mask) is not built" },
    { "add_cross_attention", false, "cross-attention is not built" },
  },

  -- Weights: slot = name without prefix. A name in a file may carry the prefix (BertForMaskedLM) or not (BertModel).
  prefix = "bert.",
  unprefixed = "^cls%f[%W]", -- never carry it
  weights = {
    ["word_embed"] = "embeddings.word_embeddings.weight",
    ["pos_embed"] = "embeddings.position_embeddings.weight",
    ["type_embed"] = "embeddings.token_type_embeddings.weight",
    ["embed_norm.w"] = "embeddings.LayerNorm.weight",
    ["embed_norm.b"] = "embeddings.LayerNorm.bias",
    ["q.w"] = "encoder.layer.{i}.attention.self.query.weight",
    ["q.b"] = "encoder.layer.{i}.attention.self.query.bias",
    ["k.w"] = "encoder.layer.{i}.attention.self.key.weight",
    ["k.b"] = "encoder.layer.{i}.attention.self.key.bias",
    ["v.w"] = "encoder.layer.{i}.attention.self.value.weight",
    ["v.b"] = "encoder.layer.{i}.attention.self.value.bias",
    ["o.w"] = "encoder.layer.{i}.attention.output.dense.weight",
    ["o.b"] = "encoder.layer.{i}.attention.output.dense.bias",
    ["norm1.w"] = "encoder.layer.{i}.attention.output.LayerNorm.weight",
    ["norm1.b"] = "encoder.layer.{i}.attention.output.LayerNorm.bias",
    ["up.w"] = "encoder.layer.{i}.intermediate.dense.weight",
    ["up.b"] = "encoder.layer.{i}.intermediate.dense.bias",
    ["down.w"] = "encoder.layer.{i}.output.dense.weight",
    ["down.b"] = "encoder.layer.{i}.output.dense.bias",
    ["norm2.w"] = "encoder.layer.{i}.output.LayerNorm.weight",
    ["norm2.b"] = "encoder.layer.{i}.output.LayerNorm.bias",
    ["head.w"] = "cls.predictions.transform.dense.weight",
    ["head.b"] = "cls.predictions.transform.dense.bias",
    ["head_norm.w"] = "cls.predictions.transform.LayerNorm.weight",
    ["head_norm.b"] = "cls.predictions.transform.LayerNorm.bias",
    ["decoder.w"] = "cls.predictions.decoder.weight",
    ["decoder.b"] = "cls.predictions.bias",
  },
  head_weight = "cls.predictions.transform.dense.weight", -- a file with it has an MLM head
  tied = { key = "tie_word_embeddings", slot = "decoder.w", to = "word_embed" },
  -- Other spellings of the same weight: Lua pattern -> replacement.
  renames = { { "LayerNorm%.gamma$", "LayerNorm.weight" }, { "LayerNorm%.beta$", "LayerNorm.bias" } },
  -- Names that count before the usual one. The decoder adds its own bias, which files with a tied decoder leave out.
  preferred = { ["decoder.b"] = "cls.predictions.decoder.bias" },
  -- Known and not used: buffers, the pooler, next-sentence prediction.
  ignored = {
    "^embeddings%.position_ids$", "^embeddings%.token_type_ids$", "^pooler%.", "^cls%.seq_relationship%.",
    "^cls%.predictions%.bias$",
  },

  -- Hook points: point -> HF module paths whose output it is (relative to the base model, `bert.` allowed in front).
  hf = {
    embed_tokens = { "embeddings.word_embeddings" },
    embed_types = { "embeddings.token_type_embeddings" },
    embed_positions = { "embeddings.position_embeddings" },
    embed = { "embeddings", "embeddings.LayerNorm" },
    attn_q = { "encoder.layer.{i}.attention.self.query" },
    attn_k = { "encoder.layer.{i}.attention.self.key" },
    attn_v = { "encoder.layer.{i}.attention.self.value" },
    attn_z = { "encoder.layer.{i}.attention.self" },
    attn_out = { "encoder.layer.{i}.attention.output.dense" },
    resid_mid = {
      "encoder.layer.{i}.attention", "encoder.layer.{i}.attention.output",
      "encoder.layer.{i}.attention.output.LayerNorm",
    },
    mlp_pre = { "encoder.layer.{i}.intermediate.dense" },
    mlp_post = { "encoder.layer.{i}.intermediate", "encoder.layer.{i}.intermediate.intermediate_act_fn" },
    mlp_out = { "encoder.layer.{i}.output.dense" },
    resid_post = { "encoder.layer.{i}", "encoder.layer.{i}.output", "encoder.layer.{i}.output.LayerNorm" },
    head_pre = { "cls.predictions.transform.dense" },
    head_out = { "cls.predictions.transform", "cls.predictions.transform.LayerNorm" },
    logits = { "cls", "cls.predictions", "cls.predictions.decoder" },
  },

  -- TransformerLens names. For BERT its two systems give one name to different tensors: in HookedEncoder ("tl2")
  -- hook_resid_post is the sum before the second norm; in TransformerBridge ("tl3") it is the layer's output.
  tl = {
    embed_tokens = { "embed.hook_embed" },
    embed_positions = { "embed.hook_pos_embed", "hook_pos_embed" },
    embed_types = { "embed.hook_token_type_embed" },
    embed = { "hook_full_embed", "hook_embed" },
    resid_pre = { "blocks.{i}.hook_resid_pre" },
    attn_q = { "blocks.{i}.attn.hook_q" },
    attn_k = { "blocks.{i}.attn.hook_k" },
    attn_v = { "blocks.{i}.attn.hook_v" },
    attn_scores = { "blocks.{i}.attn.hook_attn_scores" },
    attn_pattern = { "blocks.{i}.attn.hook_pattern" },
    attn_z = { "blocks.{i}.attn.hook_z" },
    mlp_in = { "blocks.{i}.hook_mlp_in" },
    mlp_pre = { "blocks.{i}.mlp.hook_pre" },
    mlp_post = { "blocks.{i}.mlp.hook_post" },
    mlp_out = { "blocks.{i}.hook_mlp_out" },
  },
  tl2 = {
    attn_out = { "blocks.{i}.hook_attn_out" },
    resid_mid_preln = { "blocks.{i}.hook_resid_mid" },
    resid_post_preln = { "blocks.{i}.hook_resid_post" },
    resid_post = { "blocks.{i}.hook_normalized_resid_post" },
  },
  tl3 = {
    resid_pre = { "blocks.{i}.hook_in" },
    attn_out = { "blocks.{i}.attn.o.hook_out" },
    resid_mid = { "blocks.{i}.attn.hook_out", "blocks.{i}.ln1.hook_out" },
    resid_mid_preln = { "blocks.{i}.ln1.hook_in" },
    resid_post_preln = { "blocks.{i}.ln2.hook_in" },
    resid_post = { "blocks.{i}.hook_resid_post", "blocks.{i}.hook_out", "blocks.{i}.ln2.hook_out" },
  },
}
