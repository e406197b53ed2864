/* Recordings; see recording.h. */
#include "recording.h"

#include "core/base/mem.h"
#include "pool.h"

struct sl_recording {
  sl_device *device;
  void *work;                      /* the device's; NULL when the recording failed */
  sl_pool_block *held;
  int held_count;
};

bool sl_recording_possible(const sl_device *device) { return device->table->record_begin != NULL; }

sl_status sl_recording_begin(sl_device *device, sl_recording **out) {
  sl_recording *recording;
  SL_TRY(sl_mem_alloc(sizeof *recording, "a recording", (void **)&recording));
  *recording = (sl_recording){ .device = device };
  sl_status status = sl__pool_hold_begin(device);
  if (status == SL_OK) {
    status = device->table->record_begin(device);
    if (status != SL_OK) (void)sl__pool_hold_end(device, &recording->held, &recording->held_count);
  }
  if (status != SL_OK) {
    sl_recording_release(recording);
    return status;
  }
  *out = recording;
  return SL_OK;
}

sl_status sl_recording_end(sl_recording *recording, sl_status body) {
  sl_device *device = recording->device;
  sl_status status = device->table->record_end(device, &recording->work);
  sl_status held = sl__pool_hold_end(device, &recording->held, &recording->held_count);
  if (status == SL_OK) status = held;
  if (body != SL_OK) status = body;
  if (status != SL_OK && recording->work) {
    device->table->free_recording(device, recording->work);
    recording->work = NULL;
  }
  return status;
}

sl_status sl_recording_replay(sl_recording *recording) {
  if (!recording->work) return sl_fail(SL_ESTATE, "replay: this recording failed");
  recording->device->replays++;
  return recording->device->table->replay(recording->device, recording->work);
}

void sl_recording_release(sl_recording *recording) {
  if (!recording) return;
  if (recording->work) recording->device->table->free_recording(recording->device, recording->work);
  if (recording->held) sl__pool_hold_free(recording->device, recording->held, recording->held_count);
  sl_mem_free(recording);
}
