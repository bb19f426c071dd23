/*
 * digseg.h: text-prompted segmentation from an exported DiGSeg bundle. C99, one shared library, no other dependency at
 * link time; ONNX Runtime or TensorRT is loaded when an engine is created.
 *
 * The whole of it, in one program (example begins)
 *
 *   #include <digseg/digseg.h>
 *   #include <stdio.h>
 *   int main(int argc, char **argv) {
 *     static unsigned char pixels[64 * 64 * 3];                   // your picture: RGB, 8 bits, rows from the top
 *     const char *prompts[] = {"something red", "water"};
 *     digseg_engine *engine = NULL;
 *     digseg_result *result = NULL;
 *     digseg_image image;
 *     digseg_view view;
 *     digseg_image_init(&image, sizeof image);
 *     digseg_view_init(&view, sizeof view);
 *     image.data = pixels; image.width = 64; image.height = 64;
 *     if (digseg_engine_create(argc > 1 ? argv[1] : "digseg-tiny-fp16", NULL, &engine) != DIGSEG_OK ||
 *         digseg_segment(engine, &image, prompts, 2, NULL, &result) != DIGSEG_OK ||
 *         digseg_result_view(result, &view) != DIGSEG_OK)
 *       return fprintf(stderr, "%s\n", digseg_last_error()), 1;
 *     printf("%d masks of %d x %d, scores %.2f %.2f\n", view.count, view.width, view.height, view.scores[0], view.scores[1]);
 *     digseg_result_free(result);
 *     return digseg_engine_destroy(engine), 0;
 *   }
 *
 * (example ends)
 *
 * Errors. Every function that can fail returns a digseg_status. When it is not DIGSEG_OK, digseg_last_error() gives, on
 *   the same thread and until that thread's next call, one line of text: what, expected, got, what to do.
 *   Nothing is printed, no exception leaves the library, out-parameters are untouched or NULL after a failure.
 * Threads. An engine may be used by any number of threads at once (encode, segment, verify, tokenize, info), and so may an
 *   encoding. Create and destroy are not calls on an engine "in use": destroy it after the last call has returned, and free
 *   an encoding after the last question about it. A result belongs to one thread at a time; reading it from several is fine.
 * Ownership. You own what create, encode or segment hands out and give it back with the matching destroy or free (NULL is
 *   fine there). A result outlives its engine. An encoding may be freed after its engine was destroyed, and holds what the
 *   engine computed with until then; it is asked with that engine and no other. Pointers in a digseg_view live as long as the result. What you pass in
 *   (pixels, prompts, options) is read during the call and not kept, except callbacks and their `user` pointer.
 * Structs. Each starts with `struct_size`; fill it with the _init function and sizeof. A program compiled against an
 *   older, shorter struct keeps working; one with fields this library does not know is refused unless they are zero.
 * Text. All strings are UTF-8. Paths are passed to the system as they are.
 * Callbacks. Run on the calling thread, must not call back into the same engine's create or destroy, and must not throw.
 */
#ifndef DIGSEG_H
#define DIGSEG_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && !defined(DIGSEG_STATIC)
#ifdef DIGSEG_BUILDING
#define DIGSEG_API __declspec(dllexport)
#else
#define DIGSEG_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define DIGSEG_API __attribute__((visibility("default")))
#else
#define DIGSEG_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Grows when functions or struct fields are added; what exists keeps its meaning. */
#define DIGSEG_API_VERSION 5 /* 2: digseg_engine_vocabulary; 3: digseg_run_options.labels; 4: encodings, presence, against;
                                5: folded bundles, DIGSEG_NO_MASKS */

typedef enum digseg_status {
  DIGSEG_OK = 0,
  DIGSEG_INVALID_ARGUMENT = 1, /* NULL, a size, stride, enum value or prompt that cannot be used */
  DIGSEG_NOT_FOUND = 2,        /* no such file or directory */
  DIGSEG_CORRUPT = 3,          /* a bundle file is incomplete, changed or unreadable */
  DIGSEG_INCOMPATIBLE = 4,     /* bundle format, contract, tokenizer or runtime version this library cannot use */
  DIGSEG_OUT_OF_MEMORY = 5,
  DIGSEG_CANCELLED = 6,   /* the cancel callback said so */
  DIGSEG_RUNTIME = 7,     /* the backend failed while loading or running a graph */
  DIGSEG_UNAVAILABLE = 8, /* a backend asked for cannot run here: library or device missing */
  DIGSEG_INTERNAL = 9     /* a defect of this library */
} digseg_status;

/* Pixel formats. Rows run from the top; `stride` is the distance between rows in bytes. */
enum {
  DIGSEG_RGB8 = 0,
  DIGSEG_BGR8 = 1,
  DIGSEG_RGBA8 = 2, /* composited over white */
  DIGSEG_NV12 = 3,  /* Y plane, then interleaved U V at half size; width and height even */
  DIGSEG_F32 = 4    /* interleaved RGB floats, 0..1 */
};

/* Where the pixels are. */
enum {
  DIGSEG_HOST = 0,
  DIGSEG_CUDA = 1,            /* device memory: refused with DIGSEG_UNAVAILABLE so far */
  DIGSEG_CUDA_HOST_MAPPED = 2 /* cudaHostAlloc'd or registered memory: read by the CPU like DIGSEG_HOST */
};

/* How NV12 becomes RGB. Video range is luma 16..235; full range is 0..255. */
enum { DIGSEG_BT601_VIDEO = 0, DIGSEG_BT601_FULL = 1, DIGSEG_BT709_VIDEO = 2, DIGSEG_BT709_FULL = 3 };

enum { DIGSEG_LOG_DEBUG = 0, DIGSEG_LOG_INFO = 1, DIGSEG_LOG_WARNING = 2, DIGSEG_LOG_ERROR = 3 };

/* Run flags */
enum {
  DIGSEG_TRUNCATE_PROMPTS = 1, /* cut prompts over 77 tokens instead of refusing them */
  DIGSEG_ALL_PROMPTS = 2,      /* decode every prompt, also those that presence says are not there; not of a folded bundle */
  DIGSEG_NO_MASKS = 4          /* label map, scores and what else there is, but no masks: view.masks is NULL */
};

/* What the label map shows where masks meet. */
enum {
  DIGSEG_LABELS_PARTS = 0,     /* the strongest, except that a mask which lies to nine tenths in a larger one shows there */
  DIGSEG_LABELS_STRONGEST = 1, /* the one with the largest logit */
  DIGSEG_LABELS_SMALLEST = 2   /* the one of the smallest area */
};

typedef struct digseg_engine digseg_engine;
typedef struct digseg_encoding digseg_encoding; /* a picture, ready to be asked about any number of times */
typedef struct digseg_result digseg_result;

typedef void (*digseg_log_fn)(void *user, int32_t level, const char *message);
typedef int32_t (*digseg_cancel_fn)(void *user); /* non-zero: stop; asked between the steps of a run */

typedef struct digseg_options {
  size_t struct_size;
  const char *backend;             /* NULL or "auto", "onnxruntime", "onnxruntime-cuda", "tensorrt" */
  const char *onnxruntime_library; /* path; NULL: $DIGSEG_ONNXRUNTIME, then libonnxruntime.so.1 */
  const char *vocabulary;          /* a file written by digseg_engine_save_vocabulary; NULL: the bundle's own, if any */
  int32_t threads;                 /* CPU threads inside one run; 0: one per core it may use */
  int32_t device;                  /* GPU number */
  int32_t cached_prompts;          /* folded prompts kept in memory; default 4096 */
  int32_t log_level;               /* least level that is logged; default DIGSEG_LOG_INFO */
  digseg_log_fn log;               /* NULL: silence */
  digseg_cancel_fn cancel;         /* NULL: never */
  void *user;                      /* handed to both callbacks */
  const char *cache;               /* folder that keeps what "auto" chose; NULL: $DIGSEG_CACHE, else digseg in the user's
                                      cache folder; "": nothing is kept */
} digseg_options;

typedef struct digseg_image {
  size_t struct_size;
  const void *data;
  const void *data_uv; /* NV12 only; NULL: right after the Y plane */
  int32_t width;       /* 8 or more; width * height at most 64 million */
  int32_t height;
  int32_t format; /* default DIGSEG_RGB8 */
  int32_t memory; /* default DIGSEG_HOST */
  int64_t stride; /* bytes from row to row; 0: no gap */
  int64_t stride_uv;
  int32_t matrix; /* NV12 only; default DIGSEG_BT601_VIDEO */
  int32_t reserved;
} digseg_image;

typedef struct digseg_run_options {
  size_t struct_size;
  int32_t size;    /* pixels of the longer side the model works at; 0: the picture's own within what the model is for, or what it was exported for */
  int32_t flags;   /* DIGSEG_TRUNCATE_PROMPTS, DIGSEG_ALL_PROMPTS or both (|) */
  float threshold; /* logit above which a pixel belongs to a mask; default 0 */
  int32_t labels;  /* default DIGSEG_LABELS_PARTS; a folded bundle shows the strongest, and refuses _SMALLEST */
  digseg_cancel_fn cancel; /* for this run; NULL: the engine's */
  void *user;
  const char *const *against; /* contrast prompts: where one answers more strongly than a prompt, the pixel is not that prompt's;
                                 they are not in the result, and those asked about themselves are left out */
  size_t against_count;       /* at most 1024 */
} digseg_run_options;

/* A look into a result. K = count prompts, in the order asked. */
typedef struct digseg_view {
  size_t struct_size;
  int32_t count, width, height;         /* K and the picture's own size */
  int32_t logits_width, logits_height;  /* size of `logits`, padding included */
  int32_t content_width, content_height; /* the part of the model's input that was picture, not padding */
  int32_t reserved;
  const uint8_t *masks;     /* [K, height, width], 0 or 1 */
  const int32_t *label_map; /* [height, width], 0: no mask, else 1 + number of the prompt, see DIGSEG_LABELS_* */
  const float *scores;      /* [K], mean probability inside each mask, 0 when it is empty; -1 where there are no logits */
  const float *logits;      /* [K, logits_height, logits_width] as the model gave them; 0 is the decision border. NULL where the
                               bundle was exported with --labels-only: masks are then where the label map shows a name */
  const char *backend;      /* what ran */
  double seconds_fit, seconds_text, seconds_model, seconds_masks;
  const float *presence; /* [K], probability that the prompt is in the picture; -1 where the bundle has no presence graph */
  const uint8_t *there;  /* [K], 0: below the bundle's threshold and not decoded: mask empty, score 0, every logit -20 */
} digseg_view;

/* Outcome of running the bundle's golden sample. */
typedef struct digseg_verification {
  size_t struct_size;
  int32_t passed; /* 1 when both figures keep to the limits in the manifest */
  int32_t reserved;
  double max_error; /* largest difference of a logit */
  double relative;  /* L2 norm of the difference over that of the expected logits */
  double iou;       /* mean over (picture, prompt) pairs; those of which both are empty are left out. Of a folded bundle: the
                       share of the label map that is right */
} digseg_verification;

DIGSEG_API const char *digseg_version(void);     /* "0.1.0" */
DIGSEG_API int32_t digseg_api_version(void);     /* DIGSEG_API_VERSION of the library that is running */
DIGSEG_API const char *digseg_last_error(void);  /* never NULL; "" when this thread's last call succeeded */
DIGSEG_API const char *digseg_status_string(digseg_status status);

/* Defaults for the first `size` bytes (give sizeof the struct). */
DIGSEG_API digseg_status digseg_options_init(digseg_options *options, size_t size);
DIGSEG_API digseg_status digseg_image_init(digseg_image *image, size_t size);
DIGSEG_API digseg_status digseg_run_options_init(digseg_run_options *options, size_t size);
DIGSEG_API digseg_status digseg_view_init(digseg_view *view, size_t size);
DIGSEG_API digseg_status digseg_verification_init(digseg_verification *verification, size_t size);

/* Open a bundle directory, check every hash and create a backend. options may be NULL. "auto" creates every backend
 * that is present, checks each against the golden sample, and when several are right takes the fastest; the next start
 * with the same bundle, machine and versions knows it (options.cache). */
DIGSEG_API digseg_status digseg_engine_create(const char *bundle, const digseg_options *options, digseg_engine **engine);
DIGSEG_API void digseg_engine_destroy(digseg_engine *engine);

/* Run the golden sample. DIGSEG_OK means it ran; read `passed`. */
DIGSEG_API digseg_status digseg_engine_verify(digseg_engine *engine, digseg_verification *verification);

/* Bundle hash, model, backend, versions as JSON; owned by the engine. NULL engine: NULL. */
DIGSEG_API const char *digseg_engine_info(digseg_engine *engine);

/* Token numbers of one text, start and end included; over max_tokens (0: 77) it is cut as the training tokenizer cuts.
 * Writes at most `capacity` numbers to `ids` and the true count to `count`. */
DIGSEG_API digseg_status digseg_engine_tokenize(digseg_engine *engine, const char *text, size_t max_tokens, int64_t *ids,
                                                size_t capacity, size_t *count);

/* Encode prompts ahead of time into the prompt cache. */
DIGSEG_API digseg_status digseg_engine_prepare(digseg_engine *engine, const char *const *prompts, size_t count);

/* Write prompts with their folded text to a file for digseg_options.vocabulary: those prompts then need no text encoder. */
DIGSEG_API digseg_status digseg_engine_save_vocabulary(digseg_engine *engine, const char *const *prompts, size_t count,
                                                       const char *path);

/* The prompts of the vocabulary in use, in their order; count 0 where there is none. Of a folded bundle its names, the only ones
 * that it answers for: label k + 1 is the k-th. The texts are owned by the engine. */
DIGSEG_API digseg_status digseg_engine_vocabulary(digseg_engine *engine, const char *const **prompts, size_t *count);

/* One mask per prompt, 1 to 1024 prompts. options may be NULL. A folded bundle needs no prompts (count 0, prompts NULL): it then
 * answers for all of its names, else for those that are given. */
DIGSEG_API digseg_status digseg_segment(digseg_engine *engine, const digseg_image *image, const char *const *prompts,
                                        size_t count, const digseg_run_options *options, digseg_result **result);

/* In two steps, with the same answers bit for bit: a picture is encoded once and asked any number of times, by any number of
 * threads, for the price of the prompts alone. Of the options encode reads `size` and `cancel`; segment_encoded refuses a
 * `size` that is neither 0 nor what the encoding was made at. An encoding of another engine is refused. */
DIGSEG_API digseg_status digseg_encode(digseg_engine *engine, const digseg_image *image, const digseg_run_options *options,
                                       digseg_encoding **encoding);
DIGSEG_API digseg_status digseg_segment_encoded(digseg_engine *engine, const digseg_encoding *encoding,
                                                const char *const *prompts, size_t count, const digseg_run_options *options,
                                                digseg_result **result);
DIGSEG_API size_t digseg_encoding_bytes(const digseg_encoding *encoding); /* memory it takes; NULL: 0 */
DIGSEG_API void digseg_encoding_free(digseg_encoding *encoding);

DIGSEG_API digseg_status digseg_result_view(const digseg_result *result, digseg_view *view);
DIGSEG_API void digseg_result_free(digseg_result *result);

#ifdef __cplusplus
}
#endif
#endif /* DIGSEG_H */
