/* lram.h - runs an exported policy, one environment step at a time, on a CPU.
 *
 * A model is a memory-mapped artifact (`native/model.lrn` of a bundle) and the threads that compute. A state is the
 * recurrent memory of a batch of episodes. Many states may share one model.
 *
 * There are two kinds of artifacts: a policy that is one of lram-export's networks, whose inputs and outputs are those
 * of lram_inputs and lram_outputs, and the step of a module of somebody's own, which may have others. Either kind tells
 * its fields by name (lram_input, lram_output), for lram_step_fields; lram_step is for those of the first kind.
 *
 *     lram_model *model;
 *     lram_state *state;
 *     if (lram_open("arm.lram/native/model.lrn", NULL, &model) != LRAM_OK) die(lram_last_error());
 *     if (lram_state_create(model, 1, &state) != LRAM_OK) die(lram_last_error());
 *     while (running)
 *       if (lram_step(state, &inputs, &outputs) != LRAM_OK) hold_still(lram_last_error());
 *     lram_state_free(state);
 *     lram_close(model);
 *
 * What holds for every function:
 *
 * Ownership. What lram_open, lram_state_create and lram_state_clone give out belongs to the caller, who gives it back
 * to lram_close or lram_state_free, once. Every other pointer is borrowed for the length of the call; nothing is kept.
 * Strings that are returned belong to the library.
 *
 * NULL. A pointer may be NULL only where its function says so. Elsewhere NULL is LRAM_ERROR_ARGUMENT, never a crash.
 * Pointers that are neither NULL nor valid, and arrays shorter than asked for, cannot be told from good ones.
 *
 * Errors. Whatever can fail returns a status; LRAM_OK is 0. After a failure nothing has changed: no state, no output
 * array but the handle of the function that creates one, which is then NULL (one exception: see
 * lram_step). lram_last_error tells in one line what was wrong, what was expected and what came.
 *
 * Threads. Calls on different models never interfere. A model may be used from any thread. Different states of one
 * model may be used at the same time, except that one model runs one step at a time: a second one is refused with
 * LRAM_ERROR_BUSY and does not wait, but for what the step before left for the time after its action (see
 * lram_settle), also of another state: who saves, copies or settles that one meanwhile in a thread of low priority
 * takes a part of it, and keeps the step waiting until it has done it. The same state must not be used by two calls at
 * the same time, unless both only read it (lram_state_save, lram_state_clone, lram_state_account). What differs is said
 * at the function.
 *
 * Processes. A model does not survive fork(): its threads are not in the child, where every call on it or on its states
 * is refused with LRAM_ERROR_FORKED, but for the descriptions, and for lram_state_free and lram_close, which give back
 * all but the little that the threads had. Open it in the child, however many the parent has open. The artifact is
 * mapped, not copied: do not write into it while it is open (replace it with rename(2), as lram-export does); a
 * file that shrinks under a running model ends the process with SIGBUS. No function may be called from a signal
 * handler.
 *
 * Versions. Structs may grow and functions may change from one minor version (0.1, 0.2) to the next, and the shared
 * library's name changes with them. Within one nothing does.
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

#define LRAM_VERSION "0.1.0" /* of this header */
#define LRAM_VERSION_MAJOR 0
#define LRAM_VERSION_MINOR 1
#define LRAM_VERSION_PATCH 0
/* Whether this header is of a version or of a later one: #if LRAM_VERSION_AT_LEAST(0, 2, 0) */
#define LRAM_VERSION_AT_LEAST(major, minor, patch) \
  ((LRAM_VERSION_MAJOR) > (major) ||               \
   ((LRAM_VERSION_MAJOR) == (major) &&             \
    ((LRAM_VERSION_MINOR) > (minor) || ((LRAM_VERSION_MINOR) == (minor) && (LRAM_VERSION_PATCH) >= (patch)))))

typedef struct lram_model lram_model;
typedef struct lram_state lram_state;

typedef enum lram_status {
  LRAM_OK = 0,
  LRAM_ERROR_ARGUMENT = 1, /* a pointer, a count or an option that no call may have */
  LRAM_ERROR_FILE = 2,     /* the artifact cannot be opened or read */
  LRAM_ERROR_ARTIFACT = 3, /* the artifact is damaged or not one */
  LRAM_ERROR_VERSION = 4,  /* the artifact has another version than this library reads */
  LRAM_ERROR_MEMORY = 5,   /* memory or threads that cannot be had, or memory that cannot be locked */
  LRAM_ERROR_STATE = 6,    /* a saved state that does not fit, is not finite, or too large */
  LRAM_ERROR_INPUT = 7,    /* an input of a step that is not finite or not allowed */
  LRAM_ERROR_BUSY = 8,     /* another thread is inside a step of this model */
  LRAM_ERROR_OVERFLOW = 9, /* a step whose arithmetic leaves float32: an input too large, or a state that is lost */
  LRAM_ERROR_FORKED = 10   /* the model was opened in a process of which this one is a fork */
} lram_status;

/* The version of the library that runs, which may be newer than LRAM_VERSION. Never NULL. */
LRAM_API const char *lram_version(void);

/* The name of a status, e.g. "LRAM_ERROR_BUSY", for logs; "unknown status" for a number that is none. Never NULL,
 * static. */
LRAM_API const char *lram_status_name(lram_status status);

/* What went wrong in the last call that failed on this thread; "" if none did. Never NULL. The library owns it; it is
 * valid until the next failure on this thread. */
LRAM_API const char *lram_last_error(void);

/* ---- model ------------------------------------------------------------------------------------------------- */

/* How states keep the large matrices. Saved states are float32 either way. */
typedef enum lram_state_format {
  LRAM_STATE_FLOAT32 = 0,
  LRAM_STATE_LAZY_HALF = 1,  /* half precision, rewritten every 16 steps: half the memory traffic */
  LRAM_STATE_AS_EXPORTED = 2 /* what the artifact says: float32, unless it was exported for the other */
} lram_state_format;

/* What is asked to lie in huge pages (2 MB on most processors), of which a processor finds the place in memory faster.
 * Where the system gives none to those that ask (/sys/kernel/mm/transparent_hugepage/enabled is `never`), nothing
 * changes. lram_model_memory and lram_state_memory tell what came of it. */
typedef enum lram_huge_pages {
  LRAM_HUGE_PAGES_NONE = 0,
  LRAM_HUGE_PAGES_STATE = 1, /* states, those that are larger than a huge page. They take no more memory */
  LRAM_HUGE_PAGES_ALL = 2    /* weights, too: copied, not mapped, so that processes do not share them */
} lram_huge_pages;

typedef struct lram_options {
  int threads;           /* threads that compute, 1 to 1024, the caller's included; more than there are parts of a step
                            are not used, and where weights and state, times rows, have at most 4 MiB, none but the
                            caller's */
  const int *cpus;       /* where the threads after the caller's are pinned, in turn; NULL: they are not. The caller
                            pins its own */
  int cpu_count;         /* how many `cpus` there are, at least 1; not looked at where `cpus` is NULL */
  int spin_microseconds; /* how long a thread waits for work before it sleeps, 0 (it sleeps at once) to 1000000 */
  int lock_memory;       /* not 0: mlock weights and states, so that nothing of them is ever paged out */
  lram_state_format state_format;
  int verify; /* not 0: compare the artifact with its checksum, which reads all of it */
  int safety; /* not 0: hold actions to the safety envelope that the artifact tells, if any (see lram_state_hold) */
  lram_huge_pages huge_pages;
} lram_options;

/* Fills in the defaults: 1 thread, not pinned, 200 microseconds, not locked, states as exported, verified, held to
 * the safety envelope, states in huge pages. Call it first, then change what you want to: so a field that a later
 * version adds has its default, too. NULL is ignored. */
LRAM_API void lram_options_init(lram_options *options);

/* Maps an artifact, checks it, and starts the threads. Everything is read into memory here, so that no step waits for
 * a disk. The environment variable LRAM_ISA names the kernels to use; unset or empty, they are the best that this
 * processor has (see lram_description.isa).
 *
 * path     the file, which must stay as it is until the model is closed: to replace it, rename another one to its
 *          name. The path is copied.
 * options  borrowed, `cpus` included. NULL: the defaults.
 * model    receives the model, which the caller gives back to lram_close; NULL after a failure.
 *
 * Fails with ARGUMENT (options, LRAM_ISA), FILE, ARTIFACT, VERSION, and MEMORY: larger than this machine's memory, no
 * address space, `lock_memory` beyond the limit (ulimit -l), or a thread that cannot be started (ulimit -u). */
LRAM_API lram_status lram_open(const char *path, const lram_options *options, lram_model **model);

/* Ends the threads and unmaps. All states of the model must have been freed, and no other call on it may be under way.
 * NULL is ignored. */
LRAM_API void lram_close(lram_model *model);

typedef enum lram_observation { LRAM_VECTOR = 0, LRAM_IMAGE = 1 } lram_observation;
typedef enum lram_action { LRAM_CONTINUOUS = 0, LRAM_DISCRETE = 1 } lram_action;
typedef enum lram_feedback { LRAM_REWARD_NONE = 0, LRAM_REWARD_OBSERVED = 1 } lram_feedback;

typedef struct lram_description {
  const char *isa; /* the kernels in use, e.g. "avx2"; "plain" if this processor has nothing better. Static */
  int threads;     /* threads in use in a step of `batch` rows */
  int batch;       /* batch the artifact was exported for; states may have another */
  lram_observation observation;
  size_t observation_size; /* elements per row: float for vectors, uint8_t (channels, height, width) for images; 0: the
                              model has no input of that name */
  lram_action action;
  size_t action_size; /* elements per row: float for continuous, int64_t for discrete actions; 0: the model has no
                         output of that name */
  size_t logits_size; /* floats per row; 0: the model has no output `action_logits` */
  size_t state_size;  /* floats per row of a saved state */
  size_t state_tensors;
  size_t weight_bytes;    /* bytes of weights the artifact holds */
  lram_feedback feedback; /* whether lram_inputs.reward is 0 or the reward of the previous step */
  float target_return;    /* return to aim at, in the environment's units */
  float reward_scale;     /* divisor of returns and rewards; 0: the artifact does not say */
  char name[28];          /* the policy's, as in the bundle's manifest, but its first 27 bytes at most: UTF-8 of whole
                             characters, none of them a control character. "": the artifact does not say */
  unsigned char source_sha256[32]; /* SHA-256 of the checkpoint that it was exported from, the manifest's source.sha256
                                      and the same in every precision and for every target; all 0: the artifact does
                                      not say */
  int reads_return_to_go;          /* not 0: the policy reads lram_inputs.return_to_go; 0: it may be NULL */
  int reads_reward;                /* not 0: it reads lram_inputs.reward; 0: it may be NULL */
  size_t inputs;                   /* of a step, see lram_input */
  size_t outputs;                  /* see lram_output */
  double rate;                     /* Hz, how often a second the policy was trained to act; 0: not known */
  lram_state_format state_format;  /* how states keep the large matrices: float32, also where there are none, or lazy */
} lram_description;

/* What a model is. `description` receives it; its `isa` is valid as long as the library is loaded. Any thread, at any
 * time, also during a step. Fails with ARGUMENT only. */
LRAM_API lram_status lram_describe(const lram_model *model, lram_description *description);

/* Memory that steps read, in bytes. */
typedef struct lram_memory {
  size_t bytes;
  size_t huge_bytes; /* of them in huge pages now */
} lram_memory;

/* The memory of the artifact with its weights. `memory` receives it. Any thread, at any time; it reads
 * /proc/self/smaps, which takes milliseconds. Fails with ARGUMENT only. */
LRAM_API lram_status lram_model_memory(const lram_model *model, lram_memory *memory);

/* What an input or output consists of: float, uint8_t or int64_t. */
typedef enum lram_element { LRAM_FLOAT32 = 0, LRAM_UINT8 = 1, LRAM_INT64 = 2 } lram_element;

/* One input or output of a step. */
typedef struct lram_field {
  char name[72]; /* as in the bundle's manifest, e.g. "observation" */
  lram_element element;
  int rank;          /* how many extents there are */
  size_t extents[7]; /* without the batch dimension, which comes first; 0 beyond the rank */
  size_t size;       /* elements per row */
  int read;          /* of an input: not 0: a step reads it; 0: its array may be NULL. Of an output: 0 */
  size_t choices;    /* of an output of one int64_t that is chosen from logits: how many it is chosen from, from 0 on.
                        Else 0 */
  uint32_t most_clamps; /* of an output: how many ticks in a row its limits may clamp it before its safe action takes
                           its place, see lram_state_hold; 0: any number */
} lram_field;

/* Describes input `index`, which counts from 0 to description.inputs - 1. A module's are those of the bundle's
 * manifest, in its order. A network's are the members of lram_inputs that it reads, in their order. `field` receives
 * the description, a copy. Any thread, at any time, also during a step. Fails with ARGUMENT only. */
LRAM_API lram_status lram_input(const lram_model *model, size_t index, lram_field *field);

/* The same for output `index`, from 0 to description.outputs - 1, in the order of the manifest, which is that of
 * lram_outputs in a network's. */
LRAM_API lram_status lram_output(const lram_model *model, size_t index, lram_field *field);

/* What the bundle's manifest says of one element of a field, such as a joint, or of one choice of a discrete action. */
typedef struct lram_element_facts {
  char name[72]; /* e.g. "hip", but its first 71 bytes at most: UTF-8 of whole characters, none of them a control
                    character. "": not known */
  char unit[16]; /* e.g. "N*m"; "1": a number without a unit. "": not known */
  float low;  /* -INFINITY and INFINITY: not known. An action never leaves these limits: the step clamps it to them. */
  float high; /* Of an observation they are what the sensor can read */
  float most_change; /* of an action: by how much it may differ from the tick before; INFINITY: by any number */
  float safe;        /* of an action: what it is when it must not be what the policy says; NAN: not known */
} lram_element_facts;

/* Tells element `element` of input `index`. Elements are counted in C order, from 0 to lram_field.size - 1, without the
 * rows. `facts` receives what is known, a copy; an artifact that says nothing is not an error. Any thread, at any time,
 * also during a step. Fails with ARGUMENT only. */
LRAM_API lram_status lram_input_element(const lram_model *model, size_t index, size_t element,
                                        lram_element_facts *facts);

/* The same of output `index`; where lram_field.choices is not 0 an element is a choice, from 0 to choices - 1. */
LRAM_API lram_status lram_output_element(const lram_model *model, size_t index, size_t element,
                                         lram_element_facts *facts);

/* One tensor of a saved state. */
typedef struct lram_tensor {
  char name[72];     /* as in the bundle's manifest, e.g. "state.0.C" */
  int rank;          /* how many extents there are */
  size_t extents[7]; /* without the batch dimension, which comes first; 0 beyond the rank */
  float initial;     /* value of every element at the start of an episode, 0 where initial_values is not NULL */
  const float *initial_values; /* NULL, or the values of a row's elements at the start of an episode, one by one: the
                                  model's, valid until it is closed */
} lram_tensor;

/* Describes tensor `index`, which counts from 0 to state_tensors - 1 in the order in which states are saved. Any
 * thread, at any time, also during a step. Fails with ARGUMENT only. */
LRAM_API lram_status lram_state_tensor(const lram_model *model, size_t index, lram_tensor *tensor);

/* ---- state ------------------------------------------------------------------------------------------------- */

/* A state of `batch` rows (1 to 4096) at the start of their episodes, with all memory that its steps need.
 *
 * model  must outlive the state.
 * state  receives the state, which the caller gives back to lram_state_free; NULL after a failure.
 *
 * Any thread, also during a step of the model. Fails with ARGUMENT, and MEMORY: none left, or beyond the limit for
 * locked memory. */
LRAM_API lram_status lram_state_create(lram_model *model, int batch, lram_state **state);

/* A copy of a state, of the same model; from then on the two know nothing of each other. `copy` receives it, the
 * caller gives it back to lram_state_free; NULL after a failure. `state` must not be changed meanwhile. Fails with
 * ARGUMENT and MEMORY. */
LRAM_API lram_status lram_state_clone(const lram_state *state, lram_state **copy);

/* Frees a state, before its model is closed. No call on it may be under way. NULL is ignored. */
LRAM_API void lram_state_free(lram_state *state);

/* The memory of a state, with all that its steps need. As lram_model_memory. */
LRAM_API lram_status lram_state_memory(const lram_state *state, lram_memory *memory);

/* Puts rows back to the start of an episode, whatever they held, NaN included.
 *
 * rows   `count` numbers from 0 to batch - 1, borrowed. NULL: all rows, whatever `count` is.
 *
 * A row also starts an episode, at no cost, by is_first = 1 in a step. Fails with ARGUMENT only. */
LRAM_API lram_status lram_state_reset(lram_state *state, const int *rows, size_t count);

/* Writes the state as float32: tensor after tensor, each with all rows.
 *
 * values  room for `count` floats, the caller's.
 * count   batch * state_size; anything else is LRAM_ERROR_STATE.
 *
 * Saved states of one bundle fit every target. Fails with ARGUMENT and STATE, and with OVERFLOW where a row was lost in
 * a step (see lram_step). */
LRAM_API lram_status lram_state_save(const lram_state *state, float *values, size_t count);

/* Continues from a saved state, of this or any other target.
 *
 * values  `count` finite floats, borrowed.
 * count   batch * state_size; anything else is LRAM_ERROR_STATE.
 *
 * Magnitudes are at most 1e17, but for stabilizers (`m`): beyond, a step may leave float32, and no run comes there. An
 * index of a ring (`index`) is a whole number below the ring's steps. Of a module's state any finite number is taken.
 * All of it is checked before any of it is taken.
 * Fails with ARGUMENT and STATE. */
LRAM_API lram_status lram_state_load(lram_state *state, const float *values, size_t count);

/* The same of some rows of a state, which leave the others as they are.
 *
 * rows   `row_count` numbers of rows, ascending, borrowed.
 * count  row_count * state_size; anything else is LRAM_ERROR_STATE.
 *
 * Fail as lram_state_save and lram_state_load, and with ARGUMENT: a row that does not exist, or comes twice. */
LRAM_API lram_status lram_state_save_rows(const lram_state *state, const int *rows, size_t row_count, float *values,
                                          size_t count);
LRAM_API lram_status lram_state_load_rows(lram_state *state, const int *rows, size_t row_count, const float *values,
                                          size_t count);

/* ---- safety ------------------------------------------------------------------------------------------------ */

/* What an action of floats is held to at the end of every step that succeeds, where the artifact says so of it and
 * lram_options.safety is not 0. It is done to the action that the step writes, row by row, and never to what the policy
 * remembers: saved states, logits and every other output are as without it.
 *
 *  1. The step clamps an action to its limits. In how many ticks in a row it had to, for at least one element, is
 *     counted. When they are more than lram_field.most_clamps, the row is stopped: from this tick on it wants the safe
 *     action in place of the policy's, until the row starts an episode.
 *  2. What is wanted is then moved, element by element, to at most `most_change` from the action of the tick before. So
 *     a row that stops moves to its safe action no faster than it may move anywhere, and one that lram_state_hold says
 *     is beyond its limits comes back to them no faster: only then an action is beyond them.
 *
 * A row starts an episode by lram_state_reset, by lram_state_load, or by is_first = 1 in a step (also of a policy that
 * does not read it; where it is NULL none starts). Then no row is stopped, and there is no action before: what is
 * wanted is given, unless lram_state_hold says what the robot holds. A step that fails changes nothing here either, and
 * a copy by lram_state_clone has all of it. */

/* Tells what the robots hold now as output `output`: what the action of the next step may differ from by `most_change`,
 * also where that step starts an episode. Tell it after lram_state_reset and lram_state_load, which forget it. Where
 * nothing is said of the change of an action, it makes no difference.
 *
 * values  (batch, size) finite floats, borrowed.
 *
 * Fails with ARGUMENT, also for an output of another type than float, and INPUT (not finite). */
LRAM_API lram_status lram_state_hold(lram_state *state, size_t output, const float *values);

/* What was done to an action of one row, counted in ticks: steps that succeeded. */
typedef struct lram_account {
  uint64_t consecutive; /* in a row, up to the last one, at which a limit clamped some element; 0 at the start of an
                           episode */
  uint64_t stopped;     /* at which the safe action was wanted, since the state was created */
  int is_stopped;       /* not 0: the row is stopped, until it starts an episode */
} lram_account;

/* Gives the account of output `output` in row `row`. What limits clamped is counted wherever the step tells it, also
 * without any safety envelope, and where lram_options.safety is 0. Of other outputs all is 0.
 *
 * account  receives it.
 * clamped  room for lram_field.size numbers, or NULL: at how many ticks a limit clamped each element, since the state
 *          was created.
 * slowed   the same: at how many ticks `most_change` held each element back.
 *
 * Fails with ARGUMENT only. */
LRAM_API lram_status lram_state_account(const lram_state *state, size_t output, int row, lram_account *account,
                                        uint64_t *clamped, uint64_t *slowed);

/* ---- step -------------------------------------------------------------------------------------------------- */

/* What goes in; all arrays are the caller's, are only read, and have one entry per row. What the model does not list
 * among its inputs is not looked at and may be NULL.
 *
 * The library keeps no return-to-go. An episode starts with target_return / reward_scale; after every step whose reward
 * is known, return_to_go -= reward / reward_scale, and a robot without a reward leaves it as it is. */
typedef struct lram_inputs {
  const void *observation;   /* float or uint8_t (batch, observation_size) */
  const float *return_to_go; /* (batch), divided by reward_scale; NULL where the policy does not read it */
  const float *reward;       /* (batch), finite; OBSERVED: reward of the previous step / reward_scale; NONE: 0. NULL
                                where the policy does not read it */
  const float *is_first;     /* (batch), 1 where the row starts an episode (its reward is not used), else 0 */
} lram_inputs;

/* What comes out; all arrays are the caller's, are written at the end of a step that succeeds, and must not overlap
 * with inputs. */
typedef struct lram_outputs {
  void *action;  /* float or int64_t (batch, action_size) */
  float *logits; /* (batch, logits_size), what the action was chosen from; NULL: not wanted */
} lram_outputs;

/* One environment step of every row. Returns when its action is known (see lram_settle). Allocates nothing; the only
 * lock is the one under which sleeping threads are woken. The result depends on the kernels in use, but not on the
 * number of threads. What it writes as an action is held to the artifact's safety envelope, if it has one (see
 * lram_state_hold).
 *
 * Of a model that has another input or output than those of lram_inputs and lram_outputs it is refused with ARGUMENT
 * and a text that names some: it needs lram_step_fields.
 *
 * Fails with ARGUMENT, INPUT (not finite, or is_first neither 0 nor 1: the text names the field), BUSY, and OVERFLOW:
 * an input is so large that its encoding is beyond 1e17, where the arithmetic of float32 ends (the text names it). A
 * control loop that gets an error holds its last action; the state is as it was.
 *
 * One exception: if the logits of a row are not finite in spite of these checks, that is OVERFLOW, too, and no output
 * is written, but the row's state is lost, while the others have made their step. Every further step or save is refused
 * with OVERFLOW and a text that says so, until the row is reset, a state is loaded, or is_first is 1 in it. Inputs do
 * not bring a policy there: what a step adds to a state is bounded by its weights. Damaged weights do, or a state that
 * no run produced. */
LRAM_API lram_status lram_step(lram_state *state, const lram_inputs *inputs, const lram_outputs *outputs);

/* The same step of any model, with an array per input and output that it lists. Where lram_step is not refused the two
 * compute the same, bit by bit.
 *
 * inputs   arrays in the order of lram_input, (batch, extents) of their elements each, the caller's, only read. NULL
 *          where the field is not read.
 * outputs  arrays in the order of lram_output, the caller's, written at the end of a step that succeeds; they must not
 *          overlap with inputs or with one another. NULL: not wanted.
 *
 * input_count and output_count are the description's `inputs` and `outputs`; anything else is LRAM_ERROR_ARGUMENT.
 *
 * What holds for lram_step holds here, also that nothing is allocated, and what becomes of the state after which error.
 * But a module's step whose results are not finite has changed nothing: no row is lost. */
LRAM_API lram_status lram_step_fields(lram_state *state, const void *const *inputs, size_t input_count,
                                      void *const *outputs, size_t output_count);

/* The same step, of some rows of the state only: the others wait, for a robot that has nothing to say yet, and stay as
 * they are to the bit. What a row comes to does not depend on which others make the step with it.
 *
 * rows     `row_count` numbers of rows, ascending, borrowed.
 * inputs   as in lram_step_fields, with an entry for each of these rows, one after the other.
 * outputs  likewise.
 *
 * What holds for lram_step_fields holds here. Fails with ARGUMENT, too: a row that does not exist, or comes twice. */
LRAM_API lram_status lram_step_rows(lram_state *state, const int *rows, size_t row_count, const void *const *inputs,
                                    size_t input_count, void *const *outputs, size_t output_count);

/* Does now what the last step left for the time after its action, and returns when it is done. With lazy states a step
 * gives its action before it rewrites the part of the memory whose turn it is. The threads after the caller's begin
 * with that at once, and whatever next touches the state does what is left: nothing depends on this call but the
 * moment. A control loop with one thread calls it when it has sent the action; one that measures calls it to know when
 * a step is over. Nothing is left over in other states, nor in those of a module.
 *
 * Changes no result. It may be called by any thread, also while another state of the model steps. Fails with ARGUMENT
 * and FORKED. */
LRAM_API lram_status lram_settle(lram_state *state);

#ifdef __cplusplus
}
#endif

#endif /* LRAM_H */
