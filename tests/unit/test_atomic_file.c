/* Atomic files and folders: whole or not at all, also on a full disk and when memory runs out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <dirent.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/mem.h"
#include "core/io/atomic_file.h"
#include "core/io/file_map.h"
#include "core/io/json.h"

static char folder[] = "/tmp/saelua-atomic-XXXXXX";

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

static void assert_holds(const char *path, const char *text) {
  char *found;
  size_t bytes;
  if (sl_file_read(path, 1 << 20, &found, &bytes) != SL_OK) fail_msg("%s", sl_last_error());
  assert_string_equal(found, text);
  sl_mem_free(found);
}

static int entries(const char *path) {
  DIR *dir = opendir(path);
  int count = 0;
  assert_non_null(dir);
  for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
    count += entry->d_name[0] != '.' || strlen(entry->d_name) > 2;
  closedir(dir);
  return count;
}

static void test_write_and_replace(void **state) {
  (void)state;
  const char *path = in_folder("file");
  assert_int_equal(sl_file_write(path, "one", 3), SL_OK);
  assert_holds(path, "one");
  sl_atomic_file *file;
  assert_int_equal(sl_atomic_file_open(path, 3, &file), SL_OK);
  assert_int_equal(sl_atomic_file_write(file, "two", 3), SL_OK);
  assert_holds(path, "one"); /* nothing happens before the commit */
  assert_int_equal(sl_atomic_file_commit(file), SL_OK);
  assert_holds(path, "two");
  assert_int_equal(sl_atomic_file_open(path, 3, &file), SL_OK);
  sl_atomic_file_abort(file);
  assert_holds(path, "two");
  struct stat info;
  mode_t mask = umask(0);
  umask(mask);
  assert_int_equal(stat(path, &info), 0);
  assert_int_equal(info.st_mode & 0777, 0666 & ~mask);
  assert_int_equal(entries(folder), 1);
}

static void test_full_disk(void **state) {
  (void)state;
  const char *path = in_folder("file");
  size_t bytes = 300000;
  char *data = calloc(1, bytes);
  for (int64_t room = 0; room < 300000; room += 70000) {
    sl_io_fail_after(room);
    sl_status status = sl_file_write(path, data, bytes);
    sl_io_fail_after(-1);
    assert_int_equal(status, SL_EIO);
    assert_non_null(strstr(sl_last_error(), "the disk is full: 300000 bytes are needed"));
    assert_holds(path, "two");
  }
  free(data);
  assert_int_equal(entries(folder), 1);
}

static void test_refusals(void **state) {
  (void)state;
  sl_atomic_file *file;
  assert_int_equal(sl_atomic_file_open(in_folder("none/file"), 0, &file), SL_EIO);
  assert_null(file);
  assert_int_equal(sl_dir_make(in_folder("file/below")), SL_EIO);
  assert_int_equal(sl_dir_make(in_folder("file")), SL_EIO);
  assert_non_null(strstr(sl_last_error(), "in the way"));
  assert_int_equal(sl_dir_make(""), SL_EINVAL);
  char *text;
  size_t bytes;
  sl_file_map map;
  assert_int_equal(sl_file_read(in_folder("missing"), 10, &text, &bytes), SL_ENOTFOUND);
  assert_int_equal(sl_file_read(folder, 10, &text, &bytes), SL_EIO);
  assert_int_equal(sl_file_read(in_folder("file"), 2, &text, &bytes), SL_EFORMAT);
  assert_int_equal(sl_file_map_open(folder, &map), SL_EIO);
  assert_int_equal(sl_file_map_open("/dev/null", &map), SL_EIO);
}

static void test_writable(void **state) {
  (void)state;
  assert_int_equal(sl_dir_writable(in_folder("a/b/c"), 1000), SL_OK);
  assert_int_equal(entries(in_folder("a/b/c")), 0);
  assert_int_equal(sl_dir_writable(in_folder("a/b/c"), UINT64_MAX), SL_EIO);
  assert_non_null(strstr(sl_last_error(), "bytes are needed"));
  sl_io_fail_after(0);
  assert_int_equal(sl_dir_writable(in_folder("a"), 0), SL_EIO);
  sl_io_fail_after(-1);
  assert_non_null(strstr(sl_last_error(), "cannot be written"));
}

static void make_in(const char *temporary, const char *name, const char *text) {
  char *path;
  assert_int_equal(sl_path_join(temporary, name, &path), SL_OK);
  assert_int_equal(sl_file_write(path, text, strlen(text)), SL_OK);
  sl_mem_free(path);
}

static void test_folders(void **state) {
  (void)state;
  char *temporary;
  const char *path = in_folder("runs/step");
  for (int round = 0; round < 2; round++) { /* new, then replaced */
    assert_int_equal(sl_dir_begin(path, &temporary), SL_OK);
    make_in(temporary, "weights", round == 0 ? "old" : "new");
    make_in(temporary, round == 0 ? "only-old" : "only-new", "x");
    assert_int_equal(sl_dir_commit(temporary, path), SL_OK);
    sl_mem_free(temporary);
    assert_holds(in_folder("runs/step/weights"), round == 0 ? "old" : "new");
    assert_int_equal(entries(path), 2);
    assert_int_equal(entries(in_folder("runs")), 1);
  }
  assert_int_equal(sl_dir_begin(in_folder("runs/step/"), &temporary), SL_OK);
  make_in(temporary, "weights", "bad");
  sl_dir_abort(temporary);
  sl_mem_free(temporary);
  assert_holds(in_folder("runs/step/weights"), "new");
  assert_int_equal(entries(in_folder("runs")), 1);
}

/* Removing a folder removes a link in it, not what the link points to. */
static void test_remove_keeps_link_targets(void **state) {
  (void)state;
  assert_int_equal(sl_dir_make(in_folder("kept")), SL_OK);
  make_in(in_folder("kept"), "file", "kept");
  assert_int_equal(sl_dir_make(in_folder("gone")), SL_OK);
  assert_int_equal(symlink(in_folder("kept"), in_folder("gone/link")), 0);
  assert_int_equal(sl_dir_remove(in_folder("gone")), SL_OK);
  assert_false(sl_dir_exists(in_folder("gone")));
  assert_holds(in_folder("kept/file"), "kept");
  assert_int_equal(sl_dir_remove(in_folder("gone")), SL_OK);
}

static void test_json(void **state) {
  (void)state;
  json_t *json;
  assert_int_equal(sl_json_parse("{\"b\":1,\"a\":\"x\",\"n\":null,\"t\":true}", 33, "text", &json), SL_OK);
  assert_int_equal(sl_json_save(in_folder("json"), json), SL_OK);
  assert_holds(in_folder("json"), "{\n  \"b\": 1,\n  \"a\": \"x\",\n  \"n\": null,\n  \"t\": true\n}\n");
  int64_t number = 7;
  int truth = 0;
  const char *text;
  assert_int_equal(sl_json_int(json, "b", "text", &number), SL_OK);
  assert_int_equal(number, 1);
  assert_int_equal(sl_json_opt_int(json, "n", "text", &number), SL_OK);
  assert_int_equal(number, 1);
  assert_int_equal(sl_json_opt_bool(json, "t", "text", &truth), SL_OK);
  assert_int_equal(truth, 1);
  assert_int_equal(sl_json_int(json, "a", "text", &number), SL_EFORMAT);
  assert_string_equal(sl_last_error(), "text: \"a\" is a string, expected an integer");
  assert_int_equal(sl_json_string(json, "missing", "text", &text), SL_EFORMAT);
  json_decref(json);
  assert_int_equal(sl_json_parse("{} x", 4, "text", &json), SL_EFORMAT);
  assert_int_equal(sl_json_parse("{\"a\":1,\"a\":2}", 13, "text", &json), SL_EFORMAT);
  assert_int_equal(sl_json_parse("[\"\xff\"]", 5, "text", &json), SL_EFORMAT);
  assert_null(json);
}

static void test_failing_allocations(void **state) {
  (void)state;
  int64_t before = sl_mem_get_stats().blocks;
  sl_status status = SL_ENOMEM;
  for (int64_t n = 1; status != SL_OK; n++) {
    char *temporary = NULL;
    json_t *json = NULL;
    sl_mem_fail_at(n);
    status = sl_dir_begin(in_folder("runs/step"), &temporary);
    if (status == SL_OK) status = sl_json_parse("{\"key\":[1,2,\"text\"]}", 20, "text", &json);
    if (status == SL_OK) status = sl_json_save(in_folder("json"), json);
    if (status == SL_OK) status = sl_dir_commit(temporary, in_folder("runs/step"));
    else sl_dir_abort(temporary);
    sl_mem_fail_at(0);
    json_decref(json);
    sl_mem_free(temporary);
    assert_int_equal(sl_mem_get_stats().blocks, before);
    assert_true(status == SL_OK || status == SL_ENOMEM);
    assert_int_equal(entries(in_folder("runs")), 1);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_write_and_replace),
    cmocka_unit_test(test_full_disk),
    cmocka_unit_test(test_refusals),
    cmocka_unit_test(test_writable),
    cmocka_unit_test(test_folders),
    cmocka_unit_test(test_remove_keeps_link_targets),
    cmocka_unit_test(test_json),
    cmocka_unit_test(test_failing_allocations),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
