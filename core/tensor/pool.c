/* Free blocks and books of each device; see pool.h and memory.h.
 *
 * The CPU keeps up to 192 MiB of free blocks: fresh pages cost more than most operations, but other programs want
 * memory too. Any other device keeps all that its budget allows: there, giving a block back waits until the device is
 * idle, and a training step asks for the same sizes again and again. */
#include "pool.h"
#include "storage.h"

#include <stdio.h>
#include <string.h>

#include "core/base/mem.h"

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

#ifdef SANITIZED
static const int64_t HOST_POOL_BYTES = 0, DEVICE_POOL_BYTES = 0; /* so that use after free is seen */
#else
static const int64_t HOST_POOL_BYTES = (int64_t)192 << 20, DEVICE_POOL_BYTES = INT64_MAX;
#endif
static const int64_t RESERVE_BYTES = (int64_t)512 << 20;

enum { MOST_DEVICES = 65, HOST_SLOTS = 64, DEVICE_SLOTS = 2048 };

typedef struct {
  sl_memory_stats stats;
  bool has_budget;                 /* stats.budget_bytes has been found */
  int count;
  sl_pool_block blocks[DEVICE_SLOTS]; /* free ones, oldest first; a block that does not fit pushes the oldest out */
  sl_pool_block *held;             /* [DEVICE_SLOTS] while a recording is made, else NULL */
  int held_count;
  bool held_lost;                  /* there were more */
} device_books;

static device_books books[MOST_DEVICES];

/* The books of a device, opened at first use; NULL when there are too many devices. */
static device_books *find_books(sl_device *device) {
  for (int i = 0; i < MOST_DEVICES; i++) {
    if (books[i].stats.device == device) return &books[i];
    if (books[i].stats.device) continue;
    books[i].stats.device = device;
    return &books[i];
  }
  return NULL;
}

/* -- Labels and numbers -- */

static sl_memory_label current_label = SL_MEMORY_OTHER;

sl_memory_label sl_memory_set_label(sl_memory_label label) {
  sl_memory_label before = current_label;
  current_label = label;
  return before;
}

sl_memory_label sl_memory_get_label(void) { return current_label; }

const char *sl_memory_label_name(sl_memory_label label) {
  static const char *const names[] = {
#define X(id, name) name,
    SL_MEMORY_LABELS(X)
#undef X
  };
  return names[label];
}

const sl_memory_stats *sl_memory_get_stats(int index) {
  return index >= 0 && index < MOST_DEVICES && books[index].stats.device ? &books[index].stats : NULL;
}

void sl_memory_reset_peaks(void) {
  for (int i = 0; i < MOST_DEVICES && books[i].stats.device; i++) {
    sl_memory_stats *stats = &books[i].stats;
    stats->peak_bytes = stats->live_bytes;
    memcpy(stats->label_at_peak, stats->label_bytes, sizeof stats->label_at_peak);
  }
}

void sl__pool_book(sl_device *device, sl_memory_label label, int64_t bytes, int sign) {
  sl_memory_stats *stats = &find_books(device)->stats;
  stats->live_bytes += sign * bytes;
  stats->label_bytes[label] += sign * bytes;
  if (stats->live_bytes <= stats->peak_bytes) return;
  stats->peak_bytes = stats->live_bytes;
  memcpy(stats->label_at_peak, stats->label_bytes, sizeof stats->label_at_peak);
}

void sl__pool_book_borrowed(sl_device *device, int64_t bytes, int sign) {
  find_books(device)->stats.borrowed_bytes += sign * bytes;
}

int64_t sl__pool_bytes(void) {
  int64_t sum = 0;
  for (int i = 0; i < MOST_DEVICES && books[i].stats.device; i++) sum += books[i].stats.pooled_bytes;
  return sum;
}

/* -- Free blocks -- */

static void remove_block(device_books *b, int index) {
  b->stats.pooled_bytes -= (int64_t)b->blocks[index].bytes;
  b->count--;
  memmove(&b->blocks[index], &b->blocks[index + 1], (size_t)(b->count - index) * sizeof b->blocks[0]);
}

static void drop_oldest(device_books *b) {
  sl_pool_block block = b->blocks[0];
  sl_device *device = b->stats.device;
  remove_block(b, 0);
  device->table->free(device, block.data, block.bytes);
}

static void trim(device_books *b) {
  while (b->count > 0) drop_oldest(b);
}

void sl_pool_trim(void) {
  for (int i = 0; i < MOST_DEVICES && books[i].stats.device; i++) trim(&books[i]);
}

/* The smallest block that fits without wasting more than an eighth, the newest of its size; -1 if there is none. */
static int best_fit(const sl_pool_block *blocks, int count, size_t bytes) {
  int best = -1;
  for (int i = count - 1; i >= 0; i--) {
    if (blocks[i].bytes < bytes || blocks[i].bytes > bytes + bytes / 8) continue;
    if (best < 0 || blocks[i].bytes < blocks[best].bytes) best = i;
  }
  return best;
}

static bool take_held(device_books *b, size_t bytes, void **data, size_t *got) {
  int best = b->held ? best_fit(b->held, b->held_count, bytes) : -1;
  if (best < 0) return false;
  *data = b->held[best].data;
  *got = b->held[best].bytes;
  b->held[best] = b->held[--b->held_count];
  return true;
}

static bool take_pooled(device_books *b, size_t bytes, void **data, size_t *got) {
  if (take_held(b, bytes, data, got)) return true;
  int best = best_fit(b->blocks, b->count, bytes);
  if (best < 0) return false;
  *data = b->blocks[best].data;
  *got = b->blocks[best].bytes;
  remove_block(b, best);
  return true;
}

static void give(device_books *b, void *data, size_t bytes) {
  sl_device *device = b->stats.device;
  int64_t limit = device->host_memory ? HOST_POOL_BYTES : DEVICE_POOL_BYTES;
  int slots = device->host_memory ? HOST_SLOTS : DEVICE_SLOTS;
  if (b->held && b->held_count < DEVICE_SLOTS) {
    b->held[b->held_count++] = (sl_pool_block){ data, bytes };
    return;
  }
  b->held_lost |= b->held != NULL;
  if ((int64_t)bytes > limit) {
    device->table->free(device, data, bytes);
    return;
  }
  while (b->count == slots || (b->count > 0 && b->stats.pooled_bytes > limit - (int64_t)bytes)) drop_oldest(b);
  b->blocks[b->count++] = (sl_pool_block){ data, bytes };
  b->stats.pooled_bytes += (int64_t)bytes;
}

/* Sizes that come back: whole vectors on the CPU; elsewhere 512 bytes (what the driver rounds to anyway), and for
 * blocks from 2 MiB on a sixteenth of their power of two, so that batches of nearly the same size share blocks. */
static size_t round_size(const sl_device *device, size_t bytes) {
  size_t step = device->host_memory ? 64 : 512;
  if (!device->host_memory && bytes > (size_t)2 << 20) {
    size_t power = (size_t)1 << (63 - __builtin_clzll(bytes));
    step = power / 16 < (size_t)2 << 20 ? power / 16 : (size_t)2 << 20;
  }
  if (bytes == 0) bytes = 1;
  return bytes > SIZE_MAX - step ? bytes : (bytes + step - 1) / step * step;
}

/* -- Budget -- */

static sl_status find_budget(device_books *b) {
  sl_device *device = b->stats.device;
  if (b->has_budget) return SL_OK;
  if (!device->host_memory) {
    sl_memory_info info = { 0, 0 };
    SL_TRY(device->table->memory_info(device, &info));
    int64_t reserve = (int64_t)info.total_bytes / 16;
    if (reserve > RESERVE_BYTES) reserve = RESERVE_BYTES;
    /* What is held already counts as ours. */
    int64_t ours = b->stats.live_bytes + b->stats.pooled_bytes, room = (int64_t)info.free_bytes + ours - reserve;
    b->stats.budget_bytes = room > ours + 1 ? room : ours + 1;
  }
  b->has_budget = true;
  return SL_OK;
}

sl_status sl_memory_set_budget(sl_device *device, int64_t bytes) {
  device_books *b = find_books(device);
  if (!b) return sl_fail(SL_EUNSUPPORTED, "memory: more than %d devices", (int)MOST_DEVICES);
  if (bytes == 0) {
    b->has_budget = false;
    b->stats.budget_bytes = 0;
    return find_budget(b);
  }
  if (bytes < b->stats.live_bytes || bytes < 0)
    return sl_fail(SL_EINVAL, "memory: a budget of %lld bytes on %s, where %lld bytes are in use", (long long)bytes,
                   device->name, (long long)b->stats.live_bytes);
  b->has_budget = true;
  b->stats.budget_bytes = bytes;
  while (b->count > 0 && b->stats.live_bytes + b->stats.pooled_bytes > bytes) drop_oldest(b);
  return SL_OK;
}

/* -- Out of memory -- */

/* "1.5 GiB" */
static const char *size_text(int64_t bytes, char text[24]) {
  static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
  double value = (double)bytes;
  int unit = 0;
  while (value >= 1023.95 && unit < 6) value /= 1024, unit++;
  snprintf(text, 24, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  return text;
}

/* "(SAE gradients 1.5 GiB, workspace 3.0 MiB)", largest first, at most five; "" when nothing is live. */
static void label_text(const sl_memory_stats *stats, char *text, size_t room) {
  enum { MOST = 5 };
  bool told[SL_MEMORY_LABEL_COUNT] = { false };
  size_t used = 0;
  text[0] = '\0';
  for (int n = 0; n < MOST; n++) {
    int best = -1;
    for (int i = 0; i < SL_MEMORY_LABEL_COUNT; i++)
      if (!told[i] && stats->label_bytes[i] > 0 && (best < 0 || stats->label_bytes[i] > stats->label_bytes[best]))
        best = i;
    if (best < 0) break;
    told[best] = true;
    char size[24];
    int wrote = snprintf(text + used, room - used, "%s%s %s", n == 0 ? " (" : ", ",
                         sl_memory_label_name((sl_memory_label)best), size_text(stats->label_bytes[best], size));
    if (wrote < 0 || (size_t)wrote >= room - used) break;
    used += (size_t)wrote;
  }
  if (used > 0 && used + 1 < room) memcpy(text + used, ")", 2);
}

static sl_status out_of_memory(const device_books *b, size_t bytes, bool by_budget) {
  const sl_memory_stats *stats = &b->stats;
  sl_device *device = stats->device;
  char labels[224], asked[24], live[24], limit[24], room[80] = "";
  sl_memory_info info = { 0, 0 };
  label_text(stats, labels, sizeof labels);
  if (by_budget) {
    snprintf(room, sizeof room, "the budget is %s", size_text(stats->budget_bytes, limit));
  } else if (device->table->memory_info(device, &info) == SL_OK) {
    char left[24];
    snprintf(room, sizeof room, "%s of %s are free there", size_text((int64_t)info.free_bytes, left),
             size_text((int64_t)info.total_bytes, limit));
  }
  return sl_fail(SL_ENOMEM,
                 "out of memory on %s: %s asked for, %s live%s; %s. Lower batch_size or batch_tokens, raise "
                 "micro_acc_steps, use optimizer adam8bit or low_memory%s",
                 device->name, size_text((int64_t)(bytes > INT64_MAX ? INT64_MAX : bytes), asked),
                 size_text(stats->live_bytes, live), labels, room, by_budget ? ", or raise memory_budget" : "");
}

/* Frees pooled blocks until `bytes` fit the budget. */
static bool make_room(device_books *b, size_t bytes) {
  const sl_memory_stats *stats = &b->stats;
  if (stats->budget_bytes == 0) return true;
  int64_t want = bytes > INT64_MAX / 2 ? INT64_MAX / 2 : (int64_t)bytes;
  while (b->count > 0 && stats->live_bytes + stats->pooled_bytes + want > stats->budget_bytes) drop_oldest(b);
  return stats->live_bytes + stats->pooled_bytes + want <= stats->budget_bytes;
}

/* From the pool, else from the device; what is pooled there is given back when it is in the way. */
static sl_status find_block(device_books *b, size_t bytes, void **data, size_t *got) {
  sl_device *device = b->stats.device;
  if (take_pooled(b, *got, data, got)) return SL_OK;
  if (!make_room(b, *got)) return out_of_memory(b, bytes, true);
  sl_status status = device->table->alloc(device, *got, data);
  if (status != SL_ENOMEM) return status;
  trim(b); /* somebody else took the device's memory, or it is in pieces */
  status = device->table->alloc(device, *got, data);
  return status == SL_ENOMEM ? out_of_memory(b, bytes, false) : status;
}

sl_status sl__pool_take(sl_device *device, size_t bytes, void **data, size_t *got) {
  device_books *b = find_books(device);
  if (!b) return sl_fail(SL_EUNSUPPORTED, "memory: more than %d devices", (int)MOST_DEVICES);
  SL_TRY(find_budget(b));
  *got = round_size(device, bytes);
  SL_TRY(find_block(b, bytes, data, got));
  sl_status status = sl_mem_count((int64_t)*got, "a tensor");
  if (status != SL_OK) give(b, *data, *got);
  return status;
}

/* -- Recordings -- */

sl_status sl__pool_hold_begin(sl_device *device) {
  device_books *b = find_books(device);
  if (!b || b->held) return sl_fail(SL_ESTATE, "memory: a recording is being made on %s already", device->name);
  b->held_count = 0;
  b->held_lost = false;
  return sl_mem_alloc(DEVICE_SLOTS * sizeof *b->held, "the blocks of a recording", (void **)&b->held);
}

sl_status sl__pool_hold_end(sl_device *device, sl_pool_block **held, int *count) {
  device_books *b = find_books(device);
  sl_pool_block *blocks = b->held;
  b->held = NULL;
  for (int i = 0; i < b->held_count; i++) sl__pool_book(device, SL_MEMORY_ACTIVATIONS, (int64_t)blocks[i].bytes, 1);
  *held = blocks;
  *count = b->held_count;
  if (!b->held_lost) return SL_OK;
  sl__pool_hold_free(device, blocks, b->held_count);
  *held = NULL;
  *count = 0;
  return sl_fail(SL_ENOMEM, "memory: a recording of more than %d blocks", (int)DEVICE_SLOTS);
}

void sl__pool_hold_free(sl_device *device, sl_pool_block *held, int count) {
  for (int i = 0; i < count; i++) {
    sl__pool_book(device, SL_MEMORY_ACTIVATIONS, (int64_t)held[i].bytes, -1);
    give(find_books(device), held[i].data, held[i].bytes);
  }
  sl_mem_free(held);
}

void sl__pool_give(sl_device *device, void *data, size_t bytes) {
  sl_mem_uncount((int64_t)bytes);
  give(find_books(device), data, bytes);
}
