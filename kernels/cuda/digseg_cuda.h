/*
 * digseg_cuda.h: picture to model input and logits to masks on the GPU, each in one launch. All pointers are device
 * memory (or mapped host memory); work is queued on `stream` (a cudaStream_t) and not waited for.
 * Returns 0, or the cudaError_t of the launch. Built for sm_75 to sm_120, not run by us yet.
 * For programs that run the graphs themselves; digseg_segment takes host memory and does not call these.
 */
#ifndef DIGSEG_CUDA_H
#define DIGSEG_CUDA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* RGB8 or NV12 (BT.601 video range) -> float32 [3, height, width] in -1..1, the graphs' `image`: antialiased triangle filter to content size,
 * edges repeated. chroma NULL: RGB8. */
int digseg_cuda_fit(const uint8_t *data, const uint8_t *chroma, int64_t stride, int64_t chroma_stride, int picture_width,
                    int picture_height, float *out, int width, int height, int content_width, int content_height, void *stream);

/* fp32 logits [count, height, width], of which right x bottom (in logit pixels) is picture -> label_map [out_height,
 * out_width] (0: none over the threshold, else 1 + number of the strongest) and, unless NULL, masks [count, ...] 0 or 1. */
int digseg_cuda_label(const float *logits, int count, int width, int height, float right, float bottom, int32_t *label_map,
                      uint8_t *masks, int out_width, int out_height, float threshold, void *stream);

#ifdef __cplusplus
}
#endif
#endif
