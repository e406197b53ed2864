/* Speed of the WordPiece tokenizer on one thread: megabytes of text a second, with offsets and without.
 *
 *   tokenizer_bench --folder DIR --text FILE [--repeats R] [--json]
 *
 * DIR holds vocab.txt or tokenizer.json. The text is encoded line by line, as documents are, and the best of R (5)
 * passes counts. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/mem.h"
#include "core/data/wordpiece.h"
#include "core/io/file_map.h"

static void check(sl_status status) {
  if (status == SL_OK) return;
  fprintf(stderr, "%s\n", sl_last_error());
  exit(1);
}

/* Seconds of one pass over all lines; the number of tokens in *tokens. */
static double one_pass(const sl_wordpiece *tokenizer, const char *text, size_t bytes, unsigned flags, size_t *tokens) {
  sl_token_list list = { 0 };
  double start = omp_get_wtime();
  *tokens = 0;
  for (size_t at = 0; at < bytes;) {
    const char *end = memchr(text + at, '\n', bytes - at);
    size_t length = end ? (size_t)(end - text) - at : bytes - at;
    list.count = 0;
    check(sl_wordpiece_encode(tokenizer, text + at, length, flags, &list));
    *tokens += list.count;
    at += length + 1;
  }
  double seconds = omp_get_wtime() - start;
  sl_token_list_free(&list);
  return seconds;
}

int main(int argc, char **argv) {
  const char *folder = NULL, *path = NULL;
  int repeats = 5, json = 0;
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--json")) json = 1;
    else if (i + 1 < argc && !strcmp(argv[i], "--folder")) folder = argv[++i];
    else if (i + 1 < argc && !strcmp(argv[i], "--text")) path = argv[++i];
    else if (i + 1 < argc && !strcmp(argv[i], "--repeats")) repeats = atoi(argv[++i]);
    else folder = NULL, i = argc;
  }
  if (!folder || !path) {
    fprintf(stderr, "usage: %s --folder DIR --text FILE [--repeats R] [--json]\n", argv[0]);
    return 2;
  }
  sl_wordpiece *tokenizer;
  char *text;
  size_t bytes, tokens = 0;
  check(sl_wordpiece_load(folder, &tokenizer));
  check(sl_file_read(path, (size_t)1 << 31, &text, &bytes));
  double best[2] = { 1e30, 1e30 };
  for (int r = 0; r < repeats; r++)
    for (int offsets = 0; offsets < 2; offsets++) {
      double seconds = one_pass(tokenizer, text, bytes, offsets ? SL_ENCODE_OFFSETS : 0, &tokens);
      if (seconds < best[offsets]) best[offsets] = seconds;
    }
  double plain = (double)bytes * 1e-6 / best[0], with = (double)bytes * 1e-6 / best[1];
  if (json) {
    printf("{\"bytes\": %zu, \"tokens\": %zu, \"mb_per_s\": %.2f, \"mb_per_s_offsets\": %.2f}\n", bytes, tokens, plain,
           with);
  } else {
    printf("%.2f MB, %zu tokens: %.1f MB/s (%.1f with offsets) on one thread\n", (double)bytes * 1e-6, tokens, plain, with);
  }
  sl_mem_free(text);
  sl_wordpiece_free(tokenizer);
  return 0;
}
