/* Peak memory of TopK training steps, and their time, for each way of saving memory; one way a process, because the peak
 * of a process never falls.
 *
 *   memory_bench [--tokens N] [--d D] [--latents M] [--k K] [--repeats R] [--clip C] [--rule adam|adam8bit]
 *                [--low-memory] [--plain]
 *
 * Prints one line of JSON: step_ms (the best of R), peak_bytes (of the whole process, after R steps), and peak_ratio:
 * peak_bytes over the float32 weights and float32 Adam moments of this shape, 6 D M 4 bytes, whatever the rule. Ways are
 * compared by running the program once for each. --plain: without the screening product, which keeps W_enc in bf16. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "core/sae/optim.h"

typedef struct {
  int64_t tokens, d, latents, k;
  int repeats;
  double clip;
  sl_sae_rule rule;
  bool low_memory, plain;
} options;

static void check(sl_status status) {
  if (status == SL_OK) return;
  fprintf(stderr, "%s: %s\n", sl_status_name(status), sl_last_error());
  exit(1);
}

static options parse(int argc, char **argv) {
  options o = { .tokens = 4096, .d = 768, .latents = 24576, .k = 32, .repeats = 3, .rule = SL_SAE_ADAM };
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--low-memory")) o.low_memory = true;
    else if (!strcmp(argv[i], "--plain")) o.plain = true;
    else if (i + 1 < argc && !strcmp(argv[i], "--tokens")) o.tokens = atoll(argv[++i]);
    else if (i + 1 < argc && !strcmp(argv[i], "--d")) o.d = atoll(argv[++i]);
    else if (i + 1 < argc && !strcmp(argv[i], "--latents")) o.latents = atoll(argv[++i]);
    else if (i + 1 < argc && !strcmp(argv[i], "--k")) o.k = atoll(argv[++i]);
    else if (i + 1 < argc && !strcmp(argv[i], "--repeats")) o.repeats = atoi(argv[++i]);
    else if (i + 1 < argc && !strcmp(argv[i], "--clip")) o.clip = atof(argv[++i]);
    else if (i + 1 < argc && !strcmp(argv[i], "--rule")) o.rule = strcmp(argv[++i], "adam8bit") ? SL_SAE_ADAM : SL_SAE_ADAM8;
    else {
      fprintf(stderr, "%s: unknown option %s\n", argv[0], argv[i]);
      exit(2);
    }
  }
  return o;
}

/* Noise: every latent takes part, the worst case for gradients. */
static sl_tensor *make_input(const options *o) {
  int64_t shape[2] = { o->tokens, o->d };
  sl_tensor *x;
  check(sl_tensor_create(sl_cpu_device(), SL_F32, 2, shape, &x));
  sl_random_args args = { .kind = SL_RANDOM_NORMAL, .seed = 1, .high = 1, .y = sl_tensor_data(x), .n = o->tokens * o->d };
  check(sl_cpu_device()->kernels->random(sl_cpu_device(), &args));
  return x;
}

static double one_step(const options *o, sl_sae *sae, sl_sae_optim *optim, const sl_tensor *x) {
  double start = omp_get_wtime();
  sl_sae_loss *loss;
  sl_sae_loss_opts opts = sl_sae_loss_defaults();
  opts.plain = o->plain;
  check(sl_sae_loss_create(sae, x, &opts, &loss));
  if (o->low_memory) {
    check(sl_sae_step(loss, optim, 1e-4));
  } else {
    check(sl_sae_backward(loss, 1));
    check(sl_sae_optim_step(optim, 1e-4));
  }
  sl_sae_loss_release(loss);
  return omp_get_wtime() - start;
}

int main(int argc, char **argv) {
  options o = parse(argc, argv);
  sl_sae_config config = sl_sae_config_topk(o.d, o.latents, o.k);
  sl_sae_optim_config rule = sl_sae_optim_defaults();
  rule.rule = o.rule;
  rule.clip_norm = o.clip;
  sl_sae *sae;
  sl_sae_optim *optim;
  check(sl_sae_create(sl_cpu_device(), &config, 1, &sae));
  check(sl_sae_optim_create(sae, &rule, &optim));
  sl_tensor *x = make_input(&o);
  double best = 1e30;
  for (int r = 0; r < o.repeats; r++) {
    double seconds = one_step(&o, sae, optim, x);
    best = seconds < best ? seconds : best;
  }
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  double peak = (double)usage.ru_maxrss * 1024, unit = 24.0 * (double)(o.d * o.latents);
  printf("{\"tokens\": %lld, \"d\": %lld, \"latents\": %lld, \"k\": %lld, \"threads\": %d, \"rule\": \"%s\", "
         "\"low_memory\": %s, \"plain\": %s, \"clip\": %g, \"step_ms\": %.1f, \"peak_bytes\": %.0f, \"peak_ratio\": %.4f}\n",
         (long long)o.tokens, (long long)o.d, (long long)o.latents, (long long)o.k, omp_get_max_threads(),
         o.rule == SL_SAE_ADAM ? "adam" : "adam8bit", o.low_memory ? "true" : "false", o.plain ? "true" : "false", o.clip, best * 1e3, peak,
         peak / unit);
  return 0;
}
