/* The arithmetic of sae_loss_numbers (args_sae.h) and sae_follow_threshold (args_sae_rules.h), once for every device:
 * one thread runs it. */
#ifndef SLK_SAE_NUMBERS_H
#define SLK_SAE_NUMBERS_H

#include <math.h>

#include "kernels/kernels.h"

#ifdef __cplusplus
#define SLK_EVERYWHERE static __device__ inline
#else
#define SLK_EVERYWHERE static inline
#endif

SLK_EVERYWHERE void slk_sae_loss_numbers(const sl_sae_loss_numbers_args *args) {
  sl_sae_numbers *n = args->numbers;
  double tokens = (double)args->tokens, wanted = (double)args->aux_wanted;
  if (args->total_variance > 0) n->total_variance = args->total_variance;
  double divide = args->fvu ? n->total_variance : tokens * (double)args->d;
  double main = n->sum_squares[SL_SAE_MAIN], factor = -2 / divide;
  if (n->nonfinite > 0 || !isfinite(main) || !isfinite(n->total_variance) || !(divide > 0)) main = factor = (double)NAN;
  double revive = args->aux_wanted == 0 ? 0 : (double)n->dead < wanted ? (double)n->dead / wanted : 1;
  n->entries = args->offsets[args->tokens] - args->offsets[0];
  n->mse = main / (tokens * (double)args->d);
  n->fvu = main / n->total_variance;
  n->mean_cosine = n->cosine / tokens + 0 * main;
  n->auxk = revive * n->sum_squares[SL_SAE_AUXK] / divide;
  n->multi_topk = n->sum_squares[SL_SAE_MULTI] / divide;
  n->loss = main / divide + args->auxk_alpha * n->auxk + args->multi_alpha * n->multi_topk;
  n->factor[SL_SAE_MAIN] = factor;
  n->factor[SL_SAE_AUXK] = factor * args->auxk_alpha * revive;
  n->factor[SL_SAE_MULTI] = factor * args->multi_alpha;
}

SLK_EVERYWHERE void slk_sae_follow_threshold(const sl_sae_follow_threshold_args *args) {
  const sl_sae_numbers *n = args->numbers;
  if (!isfinite(n->loss) || !isfinite(n->smallest) || !(n->smallest > 0)) return;
  double before = (1 - args->rate) * (double)args->threshold[1], weight = before + args->rate;
  args->threshold[0] = (float)((before * (double)args->threshold[0] + args->rate * n->smallest) / weight);
  args->threshold[1] = (float)weight;
}

#endif
