/* lram.h - runs an exported Large Recurrent Action Model, one environment step at a time, on a CPU.
 *
 * A model is a memory-mapped artifact (`native/model.lrn` of a bundle) and the threads that compute. A state is the
 * recurrent memory of a batch of episodes. Many states may share one model.
 *
 *     lram_model *model;
 *     lram_state *state;
 *     if (lram_open("arm.lram/native/model.lrn", NULL, &model) != LRAM_OK) die(lram_last_error());
 *     if (lram_state_create(model, 1, &state) != LRAM_OK) die(lram_last_error());
 *     lram_step(state, &inputs, &outputs);
 *
 * Ownership: what `lram_open`, `lram_state_create` and `lram_state_clone` give out belongs to the caller, who returns
 * it to `lram_close` and `lram_state_free`. Every other pointer is only borrowed for the length of the call.
 *
 * Errors: every function that can fail returns a status; LRAM_OK is 0. After a failure nothing has changed, and
 * `lram_last_error` tells in one line what was wrong, what was expected and what came.
 *
 * Threads: functions of different models never interfere. Functions of one model may be called from any thread; two
 * steps of one model at the same time do not wait for each other, the second is refused with LRAM_ERROR_BUSY. Two
 * calls on the same state at the same time are an error of the caller, except that one state may be cloned or saved
 * from several threads while nobody changes it.
 */
#ifndef LRAM_H
#define LRAM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(LRAM_SHARED) && defined(__GNUC__)
#define LRAM_API __attribute__((visibility("default")))
#else
#define LRAM_API
#endif

#define LRAM_VERSION "0.1.0"

typedef struct lram_model lram_model;
typedef struct lram_state lram_state;

typedef enum lram_status {
  LRAM_OK = 0,
  LRAM_ERROR_ARGUMENT = 1, /* a pointer, a count or an option that no call may have */
  LRAM_ERROR_FILE = 2,     /* the artifact cannot be opened or mapped */
  LRAM_ERROR_ARTIFACT = 3, /* the artifact is damaged or not one */
  LRAM_ERROR_VERSION = 4,  /* the artifact is newer than this library */
  LRAM_ERROR_MEMORY = 5,   /* memory that cannot be had, or not be locked */
  LRAM_ERROR_STATE = 6,    /* a saved state that does not fit or is not finite */
  LRAM_ERROR_INPUT = 7,    /* an input of a step that is not finite or not allowed */
  LRAM_ERROR_BUSY = 8      /* another thread is inside a step of this model */
} lram_status;

/* What went wrong in the last call that failed on this thread; "" if none did. Valid until the next failure here. */
LRAM_API const char *lram_last_error(void);

/* ---- model ------------------------------------------------------------------------------------------------- */

/* How states keep the large matrices. Saved states are float32 either way. */
typedef enum lram_state_format {
  LRAM_STATE_FLOAT32 = 0,
  LRAM_STATE_LAZY_HALF = 1 /* half precision, rewritten every 16 steps: half the memory traffic */
} lram_state_format;

typedef struct lram_options {
  int threads;            /* threads that compute, the caller's included; more than heads are not used */
  const int *cpus;        /* NULL: not pinned; else `cpu_count` CPUs for the threads after the caller's */
  int cpu_count;
  int spin_microseconds;  /* how long a thread waits for work before it sleeps; 0: it sleeps at once */
  int lock_memory;        /* 1: mlock weights and states, so that nothing is ever paged out */
  lram_state_format state_format;
  int verify;             /* 1: check the artifact's checksum, which reads it once */
} lram_options;

/* Fills in the defaults: 1 thread, not pinned, 200 microseconds, not locked, float32 states, verified. NULL is ignored. */
LRAM_API void lram_options_init(lram_options *options);

/* Maps an artifact, checks it, and starts the threads. `options` NULL: the defaults. On failure *model is NULL. */
LRAM_API lram_status lram_open(const char *path, const lram_options *options, lram_model **model);

/* Ends the threads and unmaps. All states of the model must be freed before. NULL is ignored. */
LRAM_API void lram_close(lram_model *model);

typedef enum lram_observation { LRAM_VECTOR = 0, LRAM_IMAGE = 1 } lram_observation;
typedef enum lram_action { LRAM_CONTINUOUS = 0, LRAM_DISCRETE = 1 } lram_action;

typedef struct lram_description {
  const char *isa;            /* the kernels in use, e.g. "avx512vnni"; static */
  int threads;                /* threads in use */
  int batch;                  /* batch the artifact was exported for; states may have another */
  lram_observation observation;
  size_t observation_size;    /* elements per row: float for vectors, uint8_t (channels, height, width) for images */
  lram_action action;
  size_t action_size;         /* elements per row: float for continuous, int64_t for discrete actions */
  size_t logits_size;         /* floats per row */
  size_t state_size;          /* floats per row of a saved state */
  size_t state_tensors;
  size_t weight_bytes;        /* bytes of weights the artifact holds */
} lram_description;

/* Any thread. */
LRAM_API lram_status lram_describe(const lram_model *model, lram_description *description);

/* One tensor of a saved state: `name` as in the bundle's manifest, `extents` without the batch dimension. */
typedef struct lram_tensor {
  char name[32];
  int rank;
  size_t extents[3];
  float initial; /* value of every element at the start of an episode */
} lram_tensor;

/* Any thread. `index` counts from 0 to state_tensors - 1, in the order in which states are saved. */
LRAM_API lram_status lram_state_tensor(const lram_model *model, size_t index, lram_tensor *tensor);

/* ---- state ------------------------------------------------------------------------------------------------- */

/* A state of `batch` rows at the start of their episodes, with everything a step needs: no step allocates. */
LRAM_API lram_status lram_state_create(lram_model *model, int batch, lram_state **state);

/* A copy with the same model. */
LRAM_API lram_status lram_state_clone(const lram_state *state, lram_state **copy);

/* NULL is ignored. */
LRAM_API void lram_state_free(lram_state *state);

/* Puts rows back to the start of an episode, whatever they held. `rows` NULL: all of them. */
LRAM_API lram_status lram_state_reset(lram_state *state, const int *rows, size_t count);

/* Writes the state as float32: tensor after tensor, each with all rows. `count` is batch * state_size. */
LRAM_API lram_status lram_state_save(const lram_state *state, float *values, size_t count);

/* Continues from a saved state, of any target. Refused if a value is not finite. */
LRAM_API lram_status lram_state_load(lram_state *state, const float *values, size_t count);

/* ---- step -------------------------------------------------------------------------------------------------- */

/* All arrays have one entry per row. Rewards and returns are divided by the task's reward scale. */
typedef struct lram_inputs {
  const void *observation;   /* float or uint8_t (batch, observation_size) */
  const float *return_to_go; /* (batch) */
  const float *reward;       /* (batch), of the previous step */
  const float *is_first;     /* (batch), 1 where the row starts an episode, else 0 */
} lram_inputs;

typedef struct lram_outputs {
  void *action;  /* float or int64_t (batch, action_size) */
  float *logits; /* (batch, logits_size), or NULL: not wanted */
} lram_outputs;

/* One environment step of every row. Neither allocates nor locks; a thread that slept is woken. */
LRAM_API lram_status lram_step(lram_state *state, const lram_inputs *inputs, const lram_outputs *outputs);

#ifdef __cplusplus
}
#endif

#endif /* LRAM_H */
