/* What a transformer is, as data: its sizes and choices (sl_model_spec), its weights (slots) and its hook points.
 *
 * One forward pass (forward.c) serves every family; a family is a Lua file that fills a spec from config.json and
 * says which weight name goes to which slot. The three tables below are the truth for core, binding and docs.
 * What the enums can say but the forward pass cannot do yet is refused by name in sl_model_create.
 *
 * Letters: V vocabulary, D d_model, A = n_heads * d_head, M d_mlp, B batch, T tokens. */
#ifndef SL_MODEL_SPEC_H
#define SL_MODEL_SPEC_H

#include "kernels/kernels.h"

typedef enum { SL_NORM_LAYER, SL_NORM_RMS } sl_norm_kind;
typedef enum { SL_NORM_POST, SL_NORM_PRE } sl_norm_place;      /* after the residual sum (BERT), or before the branch */
typedef enum { SL_POSITION_ABSOLUTE, SL_POSITION_ROTARY } sl_position_kind;
typedef enum { SL_HEAD_NONE, SL_HEAD_MLM } sl_head_kind;       /* MLM: dense, activation, norm, decoder */

/* Integer fields: X(field, meaning). */
#define SL_MODEL_SIZES(X)                                              \
  X(n_layers,      "number of blocks")                                 \
  X(d_model,       "width of the residual stream")                     \
  X(n_heads,       "attention heads")                                  \
  X(d_head,        "width of one head")                                \
  X(d_mlp,         "hidden width of the MLP")                          \
  X(vocab_size,    "rows of the word table")                           \
  X(max_positions, "longest sequence")                                 \
  X(n_types,       "token types (segments)")

typedef struct {
#define X(field, meaning) int64_t field;
  SL_MODEL_SIZES(X)
#undef X
  sl_norm_kind norm;
  sl_norm_place norm_place;
  float norm_eps;
  sl_position_kind position;
  sl_activation activation; /* of the MLP and of the MLM head */
  sl_head_kind head;
  bool tied_head;           /* the decoder's matrix is the word table */
  sl_dtype dtype;           /* of matrices and tables: f32, or bf16 (sums and residual stream stay f32) */
} sl_model_spec;

/* Weights. X(id, name, scope, presence, kind, rows, cols): scope MODEL or LAYER; presence ALWAYS, HEAD (a head
 * exists) or UNTIED (a head with its own matrix); kind TABLE or MATRIX (spec dtype, [rows, cols]; a matrix is
 * [out, in]) or VECTOR (f32, [rows]). Order = order of the parameter list. `s` is the spec. */
#define SL_MODEL_SLOTS(X)                                                                    \
  X(WORD_EMBED,  "word_embed",  MODEL, ALWAYS, TABLE,  s->vocab_size,    s->d_model)         \
  X(POS_EMBED,   "pos_embed",   MODEL, ALWAYS, TABLE,  s->max_positions, s->d_model)         \
  X(TYPE_EMBED,  "type_embed",  MODEL, ALWAYS, TABLE,  s->n_types,       s->d_model)         \
  X(EMBED_NORM_W, "embed_norm.w", MODEL, ALWAYS, VECTOR, s->d_model,     0)                  \
  X(EMBED_NORM_B, "embed_norm.b", MODEL, ALWAYS, VECTOR, s->d_model,     0)                  \
  X(Q_W,         "q.w",         LAYER, ALWAYS, MATRIX, s->n_heads * s->d_head, s->d_model)   \
  X(Q_B,         "q.b",         LAYER, ALWAYS, VECTOR, s->n_heads * s->d_head, 0)            \
  X(K_W,         "k.w",         LAYER, ALWAYS, MATRIX, s->n_heads * s->d_head, s->d_model)   \
  X(K_B,         "k.b",         LAYER, ALWAYS, VECTOR, s->n_heads * s->d_head, 0)            \
  X(V_W,         "v.w",         LAYER, ALWAYS, MATRIX, s->n_heads * s->d_head, s->d_model)   \
  X(V_B,         "v.b",         LAYER, ALWAYS, VECTOR, s->n_heads * s->d_head, 0)            \
  X(O_W,         "o.w",         LAYER, ALWAYS, MATRIX, s->d_model,       s->n_heads * s->d_head) \
  X(O_B,         "o.b",         LAYER, ALWAYS, VECTOR, s->d_model,       0)                  \
  X(NORM1_W,     "norm1.w",     LAYER, ALWAYS, VECTOR, s->d_model,       0)                  \
  X(NORM1_B,     "norm1.b",     LAYER, ALWAYS, VECTOR, s->d_model,       0)                  \
  X(UP_W,        "up.w",        LAYER, ALWAYS, MATRIX, s->d_mlp,         s->d_model)         \
  X(UP_B,        "up.b",        LAYER, ALWAYS, VECTOR, s->d_mlp,         0)                  \
  X(DOWN_W,      "down.w",      LAYER, ALWAYS, MATRIX, s->d_model,       s->d_mlp)           \
  X(DOWN_B,      "down.b",      LAYER, ALWAYS, VECTOR, s->d_model,       0)                  \
  X(NORM2_W,     "norm2.w",     LAYER, ALWAYS, VECTOR, s->d_model,       0)                  \
  X(NORM2_B,     "norm2.b",     LAYER, ALWAYS, VECTOR, s->d_model,       0)                  \
  X(HEAD_W,      "head.w",      MODEL, HEAD,   MATRIX, s->d_model,       s->d_model)         \
  X(HEAD_B,      "head.b",      MODEL, HEAD,   VECTOR, s->d_model,       0)                  \
  X(HEAD_NORM_W, "head_norm.w", MODEL, HEAD,   VECTOR, s->d_model,       0)                  \
  X(HEAD_NORM_B, "head_norm.b", MODEL, HEAD,   VECTOR, s->d_model,       0)                  \
  X(DECODER_W,   "decoder.w",   MODEL, UNTIED, MATRIX, s->vocab_size,    s->d_model)         \
  X(DECODER_B,   "decoder.b",   MODEL, HEAD,   VECTOR, s->vocab_size,    0)

typedef enum {
#define X(id, name, scope, presence, kind, rows, cols) SL_SLOT_##id,
  SL_MODEL_SLOTS(X)
#undef X
  SL_SLOT_COUNT
} sl_slot;

/* Hook points in the order of computation. X(id, name, scope, shape, meaning): scope EMBED, LAYER or HEAD; the name
 * of a LAYER point is preceded by "layers.<i>.". Shapes: BTD, BTA, BTM, BHTT; the head's points are [B, T, .], or
 * [N, .] when logits are asked at N rows only. Several points of one value differ in what a replacement reaches:
 * resid_pre the whole block, attn_in the q, k and v products alone, mlp_in the MLP alone. */
#define SL_MODEL_POINTS(X)                                                                                        \
  X(EMBED_TOKENS,    "embed_tokens",     EMBED, BTD,  "word embedding")                                           \
  X(EMBED_TYPES,     "embed_types",      EMBED, BTD,  "token type embedding")                                     \
  X(EMBED_POSITIONS, "embed_positions",  EMBED, BTD,  "position embedding")                                       \
  X(EMBED_PRELN,     "embed_preln",      EMBED, BTD,  "sum of the embeddings before the norm")                    \
  X(EMBED,           "embed",            EMBED, BTD,  "embeddings after the norm; HF hidden_states[0]")           \
  X(RESID_PRE,       "resid_pre",        LAYER, BTD,  "input of the block")                                       \
  X(ATTN_IN,         "attn_in",          LAYER, BTD,  "input of the q, k and v products")                         \
  X(ATTN_Q,          "attn_q",           LAYER, BTA,  "queries, heads side by side")                              \
  X(ATTN_K,          "attn_k",           LAYER, BTA,  "keys")                                                     \
  X(ATTN_V,          "attn_v",           LAYER, BTA,  "values")                                                   \
  X(ATTN_SCORES,     "attn_scores",      LAYER, BHTT, "scaled scores after the mask, before the softmax")         \
  X(ATTN_PATTERN,    "attn_pattern",     LAYER, BHTT, "attention weights")                                        \
  X(ATTN_Z,          "attn_z",           LAYER, BTA,  "mix of the values per head, before the output product")    \
  X(ATTN_OUT,        "attn_out",         LAYER, BTD,  "what attention adds to the stream")                        \
  X(RESID_MID_PRELN, "resid_mid_preln",  LAYER, BTD,  "resid_pre + attn_out, before the first norm")              \
  X(RESID_MID,       "resid_mid",        LAYER, BTD,  "stream between attention and MLP, after the first norm")   \
  X(MLP_IN,          "mlp_in",           LAYER, BTD,  "input of the MLP")                                         \
  X(MLP_PRE,         "mlp_pre",          LAYER, BTM,  "hidden MLP values before the activation")                  \
  X(MLP_POST,        "mlp_post",         LAYER, BTM,  "hidden MLP values after the activation")                   \
  X(MLP_OUT,         "mlp_out",          LAYER, BTD,  "what the MLP adds to the stream")                          \
  X(RESID_POST_PRELN, "resid_post_preln", LAYER, BTD, "resid_mid + mlp_out, before the second norm")              \
  X(RESID_POST,      "resid_post",       LAYER, BTD,  "output of the block; HF hidden_states[i + 1]")             \
  X(HEAD_PRE,        "head_pre",         HEAD,  BTD,  "dense product of the MLM head, before its activation")     \
  X(HEAD_OUT,        "head_out",         HEAD,  BTD,  "MLM head after activation and norm: the decoder's input")  \
  X(LOGITS,          "logits",           HEAD,  BTV,  "scores over the vocabulary")

typedef enum {
#define X(id, name, scope, shape, meaning) SL_POINT_##id,
  SL_MODEL_POINTS(X)
#undef X
  SL_POINT_COUNT
} sl_point;

#endif
