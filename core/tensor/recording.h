/* Recordings: device work that is launched once and replayed with one call (CUDA graphs).
 *
 *   sl_recording *r;
 *   SL_TRY(sl_recording_begin(device, &r));
 *   status = sl_recording_end(r, body());   // body: the same operations as ever; nothing runs yet
 *   ... sl_recording_replay(r) ...
 *
 * A replay reads and writes the very memory that the body used. So whatever goes in or comes out is a tensor that the
 * caller keeps; what the body made and released stays with the recording, out of everybody's reach. The body may not
 * read from the device or upload to it, and runs no operation for the first time (libraries set themselves up then). */
#ifndef SL_RECORDING_H
#define SL_RECORDING_H

#include "kernels/kernels.h"

typedef struct sl_recording sl_recording;

/* Whether the device records at all. */
bool sl_recording_possible(const sl_device *device);

/* From here on work launched on the device is recorded. The caller owns *out. */
sl_status sl_recording_begin(sl_device *device, sl_recording **out);
/* `body`: how the work between went. A failure is returned as it is; the recording is then good for release only. */
sl_status sl_recording_end(sl_recording *recording, sl_status body);
/* Runs what was recorded, in the device's order of work. SL_ESTATE for a recording that failed. */
sl_status sl_recording_replay(sl_recording *recording);
void sl_recording_release(sl_recording *recording); /* NULL is allowed */

#endif
