/* Device-wide sorts and scans by CUB. Both are stable or exact in integers, so their bits never change. */
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include "lib.h"

sl_status slk_lib_sort_pairs(sl_device *device, void *workspace, size_t *need, const slk_sort &sort) {
  return slk_cuda_check(device,
                        cub::DeviceRadixSort::SortPairs(workspace, *need, sort.keys_in, sort.keys_out, sort.values_in,
                                                        sort.values_out, sort.n, 0, sort.bits,
                                                        slk_cuda_stream(device)),
                        "sort_pairs");
}

sl_status slk_lib_exclusive_sum(sl_device *device, void *workspace, size_t *need, const int64_t *in, int64_t *out,
                                int64_t n) {
  return slk_cuda_check(
      device, cub::DeviceScan::ExclusiveSum(workspace, *need, in, out, n, slk_cuda_stream(device)), "exclusive_sum");
}
