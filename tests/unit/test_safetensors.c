/* safetensors: round trips, conversions, shards, every refusal, failing allocations and disks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/mem.h"
#include "core/io/atomic_file.h"
#include "core/io/file_map.h"
#include "core/io/safetensors_tensor.h"
#include "kernels/kernels.h"

static char folder[] = "/tmp/saelua-safetensors-XXXXXX";

static int setup(void **state) {
  (void)state;
  return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state) {
  (void)state;
  return sl_dir_remove(folder) == SL_OK ? 0 : -1;
}

static const char *in_folder(const char *name) {
  static char paths[4][256];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", folder, name);
  return path;
}

/* A file from a header text and a number of data bytes 0, 1, 2, ... */
static const char *make_file(const char *name, const char *header, size_t data) {
  uint8_t bytes[4096] = { 0 };
  uint64_t length = strlen(header);
  assert_true(8 + length + data <= sizeof bytes);
  memcpy(bytes, &length, 8);
  memcpy(bytes + 8, header, length);
  for (size_t i = 0; i < data; i++) bytes[8 + length + i] = (uint8_t)i;
  const char *path = in_folder(name);
  assert_int_equal(sl_file_write(path, bytes, 8 + length + data), SL_OK);
  return path;
}

static const float floats[6] = { 0.0f, -1.5f, 3.25f, 1e-8f, 65504.0f, -0.0f };
static const uint8_t small[3] = { 1, 2, 255 };
static const int64_t wide[2] = { INT64_MIN, 42 };

static sl_status fill_bytes(void *context, size_t offset, void *out, size_t bytes) {
  size_t *asked = context;
  assert_int_equal(offset, *asked);
  *asked += bytes;
  for (size_t i = 0; i < bytes; i++) ((uint8_t *)out)[i] = (uint8_t)((offset + i) * 7);
  return SL_OK;
}

enum { FILLED = 2500000 };

static sl_status write_sample(const char *path) {
  size_t asked = 0;
  const sl_safetensors_item items[] = {
    { .name = "odd", .dtype = SL_FILE_U8, .rank = 1, .shape = { 3 }, .data = small },
    { .name = "w", .dtype = SL_FILE_F32, .rank = 2, .shape = { 2, 3 }, .data = floats },
    { .name = "filled",
      .dtype = SL_FILE_U8,
      .rank = 1,
      .shape = { FILLED },
      .fill = fill_bytes,
      .context = &asked },
    { .name = "scalar", .dtype = SL_FILE_F32, .rank = 0, .data = floats + 1 },
    { .name = "wide", .dtype = SL_FILE_I64, .rank = 1, .shape = { 2 }, .data = wide },
    { .name = "empty", .dtype = SL_FILE_F16, .rank = 2, .shape = { 0, 5 } },
  };
  const sl_safetensors_pair pairs[] = { { "format", "pt" }, { "note", "\xc3\xa9 \"quoted\"" } };
  return sl_safetensors_write(path, items, 6, pairs, 2);
}

static void test_round_trip(void **state) {
  (void)state;
  const char *path = in_folder("sample.safetensors");
  assert_int_equal(write_sample(path), SL_OK);
  sl_safetensors *set;
  if (sl_safetensors_open(path, &set) != SL_OK) fail_msg("%s", sl_last_error());
  static const char *const order[] = { "odd", "w", "filled", "scalar", "wide", "empty" };
  assert_int_equal(sl_safetensors_count(set), 6);
  for (size_t i = 0; i < 6; i++) {
    const sl_safetensor *entry = sl_safetensors_at(set, i);
    assert_string_equal(entry->name, order[i]);
    assert_ptr_equal(sl_safetensors_find(set, order[i]), entry);
    assert_int_equal((uintptr_t)entry->data % sl_file_dtype_size(entry->dtype), 0);
  }
  assert_null(sl_safetensors_at(set, 6));
  const sl_safetensor *w = sl_safetensors_find(set, "w"), *filled = sl_safetensors_find(set, "filled");
  assert_int_equal(w->rank, 2);
  assert_int_equal(w->shape[1], 3);
  assert_memory_equal(w->data, floats, sizeof floats);
  assert_memory_equal(sl_safetensors_find(set, "wide")->data, wide, sizeof wide);
  assert_memory_equal(sl_safetensors_find(set, "scalar")->data, floats + 1, 4);
  assert_int_equal(sl_safetensors_find(set, "scalar")->count, 1);
  assert_int_equal(sl_safetensors_find(set, "empty")->bytes, 0);
  for (size_t i = 0; i < FILLED; i++) assert_int_equal(((const uint8_t *)filled->data)[i], (uint8_t)(i * 7));
  assert_string_equal(sl_safetensors_metadata(set, "note"), "\xc3\xa9 \"quoted\"");
  assert_null(sl_safetensors_metadata(set, "nothing"));
  assert_int_equal(sl_safetensors_expect(w, 2, (int64_t[]){ 2, 3 }), SL_OK);
  assert_int_equal(sl_safetensors_expect(w, 2, (int64_t[]){ 3, 2 }), SL_ESHAPE);
  assert_non_null(strstr(sl_last_error(), "tensor \"w\" is [2 x 3], expected [3 x 2]"));
  const sl_safetensor *none;
  assert_int_equal(sl_safetensors_get(set, "bert.w", &none), SL_ENOTFOUND);
  assert_non_null(strstr(sl_last_error(), "most similar name is \"w\""));
  sl_safetensors_close(set);
  char *first, *second;
  size_t first_bytes, second_bytes;
  assert_int_equal(write_sample(in_folder("again.safetensors")), SL_OK);
  assert_int_equal(sl_file_read(path, 1 << 24, &first, &first_bytes), SL_OK);
  assert_int_equal(sl_file_read(in_folder("again.safetensors"), 1 << 24, &second, &second_bytes), SL_OK);
  assert_int_equal(first_bytes, second_bytes);
  assert_memory_equal(first, second, first_bytes);
  assert_int_equal(first[0] % 8, 0); /* the header is padded */
  sl_mem_free(first);
  sl_mem_free(second);
}

static void test_conversions(void **state) {
  (void)state;
  static const double doubles[3] = { 1.0 / 3.0, -1e300, 2.5 };
  static const uint16_t halves[3] = { 0x3c00, 0xc100, 0x0001 }, brains[3] = { 0x3f80, 0xc020, 0x7f80 };
  static const int16_t shorts[2] = { -32768, 5 };
  static const int8_t chars[2] = { -128, 127 };
  static const uint8_t bools[3] = { 0, 1, 7 };
  const sl_safetensors_item items[] = {
    { .name = "f64", .dtype = SL_FILE_F64, .rank = 1, .shape = { 3 }, .data = doubles },
    { .name = "f16", .dtype = SL_FILE_F16, .rank = 1, .shape = { 3 }, .data = halves },
    { .name = "bf16", .dtype = SL_FILE_BF16, .rank = 1, .shape = { 3 }, .data = brains },
    { .name = "i16", .dtype = SL_FILE_I16, .rank = 1, .shape = { 2 }, .data = shorts },
    { .name = "i8", .dtype = SL_FILE_I8, .rank = 1, .shape = { 2 }, .data = chars },
    { .name = "bool", .dtype = SL_FILE_BOOL, .rank = 1, .shape = { 3 }, .data = bools },
    { .name = "i64", .dtype = SL_FILE_I64, .rank = 1, .shape = { 2 }, .data = wide },
  };
  assert_int_equal(sl_safetensors_write(in_folder("kinds"), items, 7, NULL, 0), SL_OK);
  sl_safetensors *set;
  assert_int_equal(sl_safetensors_open(in_folder("kinds"), &set), SL_OK);
  float f[3];
  int32_t n[3];
  int64_t l[3];
  uint8_t b[3];
  uint16_t h[3];
  assert_int_equal(sl_safetensors_copy(sl_safetensors_find(set, "f64"), SL_F32, f), SL_OK);
  assert_true(f[0] == (float)(1.0 / 3.0) && f[1] < -3e38f && f[2] == 2.5f);
  assert_int_equal(sl_safetensors_copy(sl_safetensors_find(set, "f16"), SL_F32, f), SL_OK);
  assert_true(f[0] == 1.0f && f[1] == -2.5f && f[2] == 0x1p-24f);
  assert_int_equal(sl_safetensors_copy(sl_safetensors_find(set, "bf16"), SL_F16, h), SL_OK);
  assert_true(h[0] == 0x3c00 && h[1] == 0xc100 && h[2] == 0x7c00);
  assert_int_equal(sl_safetensors_copy(sl_safetensors_find(set, "i16"), SL_I32, n), SL_OK);
  assert_true(n[0] == -32768 && n[1] == 5);
  assert_int_equal(sl_safetensors_copy(sl_safetensors_find(set, "i8"), SL_I64, l), SL_OK);
  assert_true(l[0] == -128 && l[1] == 127);
  assert_int_equal(sl_safetensors_copy(sl_safetensors_find(set, "bool"), SL_U8, b), SL_OK);
  assert_true(b[0] == 0 && b[1] == 1 && b[2] == 1);
  assert_int_equal(sl_safetensors_copy(sl_safetensors_find(set, "i64"), SL_I64, l), SL_OK);
  assert_true(l[0] == INT64_MIN);
  assert_int_equal(sl_safetensors_copy(sl_safetensors_find(set, "i64"), SL_I32, n), SL_EDTYPE);
  assert_int_equal(sl_safetensors_copy(sl_safetensors_find(set, "i8"), SL_F32, f), SL_EDTYPE);
  assert_int_equal(sl_safetensors_copy(sl_safetensors_find(set, "f16"), SL_I32, n), SL_EDTYPE);
  assert_non_null(strstr(sl_last_error(), "tensor \"f16\" is F16, which is not read as i32"));
  sl_safetensors_close(set);
}

#define T(name, rest) "\"" name "\":{\"dtype\":\"F32\"," rest "}"

static void test_refused_headers(void **state) {
  (void)state;
  static const struct {
    const char *header;
    size_t data;
    const char *message;
  } bad[] = {
    { "", 0, "not valid JSON" },
    { "{", 0, "not valid JSON" },
    { "[]", 0, "header is an array" },
    { "{" T("a", "\"shape\":[1],\"data_offsets\":[0,4]") "," T("a",
                                                               "\"shape\":[1],\"data_offsets\":[4,8]") "}",
      8, "duplicate" },
    { "{\"a\":5}", 0, "tensor \"a\" is an integer" },
    { "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "\"dtype\" is nothing" },
    { "{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4,
      "dtype F8_E4M3 is not supported" },
    { "{" T("a", "\"shape\":4,\"data_offsets\":[0,4]") "}", 4, "\"shape\" is an integer" },
    { "{" T("a", "\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]") "}", 4, "at most 8 sizes" },
    { "{" T("a", "\"shape\":[-1],\"data_offsets\":[0,4]") "}", 4, "negative" },
    { "{" T("a", "\"shape\":[1.5],\"data_offsets\":[0,4]") "}", 4, "a real number" },
    { "{" T("a", "\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]") "}", 4, "more than 2^63 bytes" },
    { "{" T("a", "\"shape\":[0,4294967296,4294967296],\"data_offsets\":[0,0]") "}", 0,
      "more than 2^63 bytes" },
    { "{" T("a", "\"shape\":[1]") "}", 4, "must be two whole numbers" },
    { "{" T("a", "\"shape\":[1],\"data_offsets\":[0,4,8]") "}", 4, "must be two whole numbers" },
    { "{" T("a", "\"shape\":[1],\"data_offsets\":[4,0]") "}", 4, "do not lie in the file" },
    { "{" T("a", "\"shape\":[1],\"data_offsets\":[-4,0]") "}", 4, "do not lie in the file" },
    { "{" T("a", "\"shape\":[2],\"data_offsets\":[0,8]") "}", 4, "do not lie in the file's 4 bytes" },
    { "{" T("a", "\"shape\":[2],\"data_offsets\":[0,4]") "}", 4,
      "[2] of F32 needs 8 bytes, data_offsets give 4" },
    { "{" T("a", "\"shape\":[1],\"data_offsets\":[0,4]") "," T("b",
                                                               "\"shape\":[2],\"data_offsets\":[0,8]") "}",
      8, "overlap" },
    { "{" T("a", "\"shape\":[1],\"data_offsets\":[0,4]") "," T("b",
                                                               "\"shape\":[1],\"data_offsets\":[8,12]") "}",
      12, "a hole of 4 bytes before tensor \"b\"" },
    { "{" T("a", "\"shape\":[1],\"data_offsets\":[0,4]") "}", 7, "3 bytes behind the last tensor" },
    { "{\"__metadata__\":[]}", 0, "__metadata__ is an array" },
    { "{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ \"a\" is an integer" },
  };
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    const char *path = make_file("bad", bad[i].header, bad[i].data);
    sl_safetensors *set;
    assert_int_equal(sl_safetensors_open(path, &set), SL_EFORMAT);
    assert_null(set);
    if (!strstr(sl_last_error(), bad[i].message))
      fail_msg("\"%s\" instead of \"%s\"", sl_last_error(), bad[i].message);
    assert_true(strncmp(sl_last_error(), path, strlen(path)) == 0);
  }
}

static void test_refused_lengths(void **state) {
  (void)state;
  static const struct {
    uint64_t length;
    size_t bytes;
    const char *message;
  } bad[] = {
    { 0, 0, "0 bytes; a safetensors file starts" },
    { 2, 7, "7 bytes; a safetensors file starts" },
    { 3, 10, "has only 2 behind the length" },
    { 100000001, 10, "at most 100000000 are allowed" },
    { UINT64_MAX, 10, "at most 100000000 are allowed" },
  };
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    uint8_t bytes[16] = { 0 };
    memcpy(bytes, &bad[i].length, 8);
    memcpy(bytes + 8, "{}", 2);
    assert_int_equal(sl_file_write(in_folder("bad"), bytes, bad[i].bytes), SL_OK);
    sl_safetensors *set;
    assert_int_equal(sl_safetensors_open(in_folder("bad"), &set), SL_EFORMAT);
    if (!strstr(sl_last_error(), bad[i].message))
      fail_msg("\"%s\" instead of \"%s\"", sl_last_error(), bad[i].message);
  }
  sl_safetensors *set;
  assert_int_equal(sl_safetensors_open(in_folder("missing"), &set), SL_ENOTFOUND);
  assert_int_equal(sl_safetensors_open(folder, &set), SL_EIO);
  assert_int_equal(sl_safetensors_open(make_file("none", "{}", 0), &set), SL_OK);
  assert_int_equal(sl_safetensors_count(set), 0);
  sl_safetensors_close(set);
}

/* A sample file cut anywhere is refused. */
static void test_every_truncation(void **state) {
  (void)state;
  const char *header = "{" T("a", "\"shape\":[2],\"data_offsets\":[0,8]") "," T(
      "b", "\"shape\":[],\"data_offsets\":[8,12]") "}";
  const char *path = make_file("whole", header, 12);
  char *bytes;
  size_t count;
  assert_int_equal(sl_file_read(path, 4096, &bytes, &count), SL_OK);
  for (size_t cut = 0; cut < count; cut++) {
    sl_safetensors *set;
    assert_int_equal(sl_file_write(in_folder("cut"), bytes, cut), SL_OK);
    assert_int_equal(sl_safetensors_open(in_folder("cut"), &set), SL_EFORMAT);
  }
  sl_mem_free(bytes);
}

static void assert_dir_refused(sl_status code, const char *message) {
  sl_safetensors *set;
  assert_int_equal(sl_safetensors_open_dir(in_folder("model"), &set), code);
  assert_null(set);
  if (!strstr(sl_last_error(), message)) fail_msg("\"%s\" instead of \"%s\"", sl_last_error(), message);
}

static void write_index(const char *text) {
  assert_int_equal(sl_file_write(in_folder("model/model.safetensors.index.json"), text, strlen(text)), SL_OK);
}

static void test_folders(void **state) {
  (void)state;
  assert_dir_refused(SL_ENOTFOUND, "no such folder");
  assert_int_equal(sl_dir_make(in_folder("model")), SL_OK);
  assert_dir_refused(SL_ENOTFOUND, "no model.safetensors and no");
  assert_int_equal(sl_file_write(in_folder("model/pytorch_model.bin"), "x", 1), SL_OK);
  assert_dir_refused(SL_EUNSUPPORTED, "safe_serialization=True");
  make_file("model/one", "{" T("a", "\"shape\":[1],\"data_offsets\":[0,4]") "}", 4);
  make_file("model/two",
            "{\"__metadata__\":{\"k\":\"v\"}," T("b", "\"shape\":[2],\"data_offsets\":[0,8]") "," T(
                "c", "\"shape\":[],\"data_offsets\":[8,12]") "}",
            12);
  write_index("{\"weight_map\":{\"b\":\"two\",\"a\":\"one\",\"c\":\"two\"}}");
  sl_safetensors *set;
  if (sl_safetensors_open_dir(in_folder("model"), &set) != SL_OK) fail_msg("%s", sl_last_error());
  assert_int_equal(sl_safetensors_count(set), 3);
  assert_int_equal(sl_safetensors_find(set, "b")->shape[0], 2);
  assert_non_null(strstr(sl_safetensors_find(set, "a")->path, "/one"));
  assert_string_equal(sl_safetensors_metadata(set, "k"), "v");
  sl_safetensors_close(set);
  write_index("{\"weight_map\":{\"b\":\"one\",\"a\":\"one\",\"c\":\"two\"}}");
  assert_dir_refused(SL_EFORMAT, "tensor \"b\" should be in one but is in two");
  write_index("{\"weight_map\":{\"d\":\"one\"}}");
  assert_dir_refused(SL_EFORMAT, "tensor \"d\" should be in one but is missing");
  write_index("{\"weight_map\":{\"a\":\"../one\"}}");
  assert_dir_refused(SL_EFORMAT, "not a plain file name");
  write_index("{\"weight_map\":{\"a\":\"/etc/passwd\"}}");
  assert_dir_refused(SL_EFORMAT, "not a plain file name");
  write_index("{\"weight_map\":{\"a\":\"three\"}}");
  assert_dir_refused(SL_ENOTFOUND, "three: cannot open");
  write_index("{\"weight_map\":{}}");
  assert_dir_refused(SL_EFORMAT, "is empty");
  write_index("{\"weight_map\":{\"a\":5}}");
  assert_dir_refused(SL_EFORMAT, "is an integer, expected a string");
  make_file("model/double", "{" T("a", "\"shape\":[1],\"data_offsets\":[0,4]") "}", 4);
  write_index("{\"weight_map\":{\"a\":\"one\",\"b\":\"double\"}}");
  assert_dir_refused(SL_EFORMAT, "is both in");
}

static void test_refused_writes(void **state) {
  (void)state;
  const char *path = in_folder("kept");
  assert_int_equal(sl_file_write(path, "old", 3), SL_OK);
  sl_safetensors_item items[2] = {
    { .name = "a", .dtype = SL_FILE_F32, .rank = 1, .shape = { 6 }, .data = floats },
    { .name = "a", .dtype = SL_FILE_F32, .rank = 1, .shape = { 6 }, .data = floats },
  };
  assert_int_equal(sl_safetensors_write(path, items, 2, NULL, 0), SL_EINVAL);
  assert_non_null(strstr(sl_last_error(), "given twice"));
  items[1].name = "__metadata__";
  assert_int_equal(sl_safetensors_write(path, items, 2, NULL, 0), SL_EINVAL);
  items[1].name = "\xff";
  assert_int_equal(sl_safetensors_write(path, items, 2, NULL, 0), SL_EINVAL);
  assert_non_null(strstr(sl_last_error(), "UTF-8"));
  items[1] = (sl_safetensors_item){
    .name = "b", .dtype = SL_FILE_F32, .rank = 2, .shape = { INT64_MAX, 8 }, .data = floats
  };
  assert_int_equal(sl_safetensors_write(path, items, 2, NULL, 0), SL_ESHAPE);
  items[1] = (sl_safetensors_item){ .name = "b", .dtype = SL_FILE_F32, .rank = 1, .shape = { 1 } };
  assert_int_equal(sl_safetensors_write(path, items, 2, NULL, 0), SL_EINVAL);
  sl_io_fail_after(100);
  assert_int_equal(write_sample(path), SL_EIO);
  sl_io_fail_after(-1);
  assert_non_null(strstr(sl_last_error(), "the disk is full"));
  char *text;
  size_t bytes;
  assert_int_equal(sl_file_read(path, 100, &text, &bytes), SL_OK);
  assert_string_equal(text, "old");
  sl_mem_free(text);
}

/* Tensors out and in again, through a transposed view, with their dtypes. */
static void test_tensors(void **state) {
  (void)state;
  sl_tensor *a, *view, *b, *back;
  static const uint16_t halves[3] = { 0x3c00, 0xc100, 0x0001 };
  assert_int_equal(sl_tensor_create(sl_cpu_device(), SL_F32, 2, (int64_t[]){ 2, 3 }, &a), SL_OK);
  assert_int_equal(sl_tensor_write(a, floats, sizeof floats), SL_OK);
  assert_int_equal(sl_tensor_transpose(a, 0, 1, &view), SL_OK);
  assert_int_equal(sl_tensor_create(sl_cpu_device(), SL_F16, 1, (int64_t[]){ 3 }, &b), SL_OK);
  assert_int_equal(sl_tensor_write(b, halves, sizeof halves), SL_OK);
  const char *const names[] = { "b", "view" };
  sl_tensor *const tensors[] = { b, view };
  const sl_safetensors_pair pair = { "step", "7" };
  if (sl_safetensors_save_tensors(in_folder("tensors"), names, tensors, 2, &pair, 1) != SL_OK)
    fail_msg("%s", sl_last_error());
  sl_safetensors *set;
  assert_int_equal(sl_safetensors_open(in_folder("tensors"), &set), SL_OK);
  assert_string_equal(sl_safetensors_metadata(set, "step"), "7");
  assert_int_equal(sl_safetensors_load_tensor(sl_safetensors_find(set, "view"), sl_cpu_device(), &back),
                   SL_OK);
  assert_int_equal(back->shape[0], 3);
  for (int i = 0; i < 3; i++) {
    for (int j = 0; j < 2; j++) assert_true(sl_tensor_f32(back)[i * 2 + j] == floats[j * 3 + i]);
  }
  sl_tensor_release(back);
  assert_int_equal(sl_safetensors_load_tensor(sl_safetensors_find(set, "b"), sl_cpu_device(), &back), SL_OK);
  assert_int_equal(back->dtype, SL_F16);
  assert_memory_equal(sl_tensor_data(back), halves, sizeof halves);
  sl_tensor_release(back);
  assert_int_equal(
      sl_safetensors_load_tensor_as(sl_safetensors_find(set, "b"), sl_cpu_device(), SL_F32, &back), SL_OK);
  assert_true(sl_tensor_f32(back)[1] == -2.5f);
  sl_tensor_release(back);
  sl_tensor *none = a;
  assert_int_equal(
      sl_safetensors_load_tensor_as(sl_safetensors_find(set, "b"), sl_cpu_device(), SL_I32, &none),
      SL_EDTYPE);
  assert_null(none);
  sl_safetensors_close(set);
  sl_tensor_release(a);
  sl_tensor_release(view);
  sl_tensor_release(b);
}

static void test_failing_allocations(void **state) {
  (void)state;
  int64_t before = sl_mem_get_stats().blocks;
  const char *path = in_folder("torture");
  assert_int_equal(sl_dir_make(in_folder("model")), SL_OK);
  write_index("{\"weight_map\":{\"b\":\"two\",\"a\":\"one\",\"c\":\"two\"}}");
  sl_status status = SL_ENOMEM;
  int64_t n = 1;
  for (; status != SL_OK; n++) {
    sl_safetensors *set = NULL, *dir = NULL;
    sl_mem_fail_at(n);
    status = write_sample(path);
    if (status == SL_OK) status = sl_safetensors_open(path, &set);
    if (status == SL_OK) status = sl_safetensors_open_dir(in_folder("model"), &dir);
    sl_mem_fail_at(0);
    if (status == SL_OK) assert_int_equal(sl_safetensors_count(set), 6);
    if (status != SL_OK && status != SL_ENOMEM) fail_msg("%lld: %s", (long long)n, sl_last_error());
    sl_safetensors_close(set);
    sl_safetensors_close(dir);
    assert_int_equal(sl_mem_get_stats().blocks, before);
  }
  assert_true(n > 50);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_round_trip),          cmocka_unit_test(test_conversions),
    cmocka_unit_test(test_refused_headers),     cmocka_unit_test(test_refused_lengths),
    cmocka_unit_test(test_every_truncation),    cmocka_unit_test(test_folders),
    cmocka_unit_test(test_refused_writes),      cmocka_unit_test(test_tensors),
    cmocka_unit_test(test_failing_allocations),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
