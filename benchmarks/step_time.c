/* What a step of a bundle takes from C, for small_policies.py, which compiles it and has it take turns with others:
 *     step_time model.lrn THREADS OBSERVATIONS
 * OBSERVATIONS is a raw file of float32: the input "observation" of one step after the other, with all rows; they are
 * used in a cycle. The first step starts an episode, inputs of other names are 0. Every line of standard input,
 * "WARM_UP STEPS NANOSECONDS", is a window: WARM_UP steps that do not count, then STEPS that are timed, fewer if both
 * take more than NANOSECONDS. Its answer is a line of JSON: the nanoseconds of every timed step, and the first output
 * after the last. */
#define _POSIX_C_SOURCE 200809L
#include <lram.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_FIELDS = 32 };

typedef struct loop {
  lram_state* state;
  const void* inputs[MOST_FIELDS];
  void* outputs[MOST_FIELDS];
  size_t input_count, output_count;
  size_t observation;        /* which input it is */
  const float* observations; /* of all steps */
  size_t observed, steps;    /* floats of a step, and how many steps there are */
  size_t next;               /* the step that comes */
  float* is_first;           /* NULL: the policy does not read it */
  size_t rows, action_size;  /* elements of the first output, with all rows */
} loop;

static void fail(const char* what) {
  fprintf(stderr, "%s\n", what);
  exit(1);
}

static void check(lram_status status) {
  if (status != LRAM_OK) fail(lram_last_error());
}

static void* zeros(size_t count, size_t size) {
  void* memory = calloc(count > 0 ? count : 1, size);
  if (memory == NULL) fail("no memory");
  return memory;
}

static void* array_of(const lram_field* field, size_t rows) {
  return zeros(rows * field->size, field->element == LRAM_INT64 ? 8 : field->element == LRAM_UINT8 ? 1 : 4);
}

static void read_observations(loop* loop, const char* path) {
  FILE* file = fopen(path, "rb");
  if (file == NULL || fseek(file, 0, SEEK_END) != 0) fail("the observations cannot be opened");
  const size_t count = (size_t)ftell(file) / sizeof(float);
  float* values = zeros(count, sizeof(float));
  rewind(file);
  if (fread(values, sizeof(float), count, file) != count) fail("the observations cannot be read");
  fclose(file);
  loop->observations = values;
  loop->steps = count / loop->observed;
  if (loop->steps == 0) fail("the observations end within the first step");
}

/* Arrays for every input and output, found by their names. */
static void bind_fields(loop* loop, const lram_model* model, const lram_description* about) {
  lram_field field;
  if (about->inputs > MOST_FIELDS || about->outputs > MOST_FIELDS) fail("more inputs or outputs than expected");
  loop->rows = (size_t)about->batch;
  loop->input_count = about->inputs;
  loop->output_count = about->outputs;
  for (size_t i = 0; i < about->inputs; ++i) {
    check(lram_input(model, i, &field));
    void* array = array_of(&field, loop->rows);
    loop->inputs[i] = array;
    if (strcmp(field.name, "is_first") == 0) loop->is_first = array;
    if (strcmp(field.name, "observation") == 0 && field.element == LRAM_FLOAT32) {
      loop->observation = i;
      loop->observed = loop->rows * field.size;
    }
  }
  if (loop->observed == 0) fail("the policy has no input 'observation' of float32");
  for (size_t i = 0; i < about->outputs; ++i) {
    check(lram_output(model, i, &field));
    loop->outputs[i] = array_of(&field, loop->rows);
    if (i == 0 && field.element != LRAM_FLOAT32) fail("the policy's first output is not float32");
    if (i == 0) loop->action_size = loop->rows * field.size;
  }
}

static int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Nanoseconds of a step. */
static int64_t step(loop* loop) {
  loop->inputs[loop->observation] = loop->observations + loop->next % loop->steps * loop->observed;
  if (loop->is_first != NULL && loop->next < 2)
    for (size_t row = 0; row < loop->rows; ++row) loop->is_first[row] = loop->next == 0;
  ++loop->next;
  const int64_t start = now();
  const lram_status status =
      lram_step_fields(loop->state, loop->inputs, loop->input_count, loop->outputs, loop->output_count);
  const int64_t end = now();
  check(status);
  return end - start;
}

static void window(loop* loop, long warm_up, long steps, int64_t limit) {
  int64_t* times = zeros((size_t)steps, sizeof(int64_t));
  const int64_t end = now() + limit;
  long taken = 0;
  for (long i = 0; i < warm_up && now() < end; ++i) step(loop);
  while (taken < steps && (taken == 0 || now() < end)) times[taken++] = step(loop);
  printf("{\"nanoseconds\": [");
  for (long i = 0; i < taken; ++i) printf("%s%lld", i == 0 ? "" : ", ", (long long)times[i]);
  printf("], \"action\": [");
  const float* action = loop->outputs[0];
  for (size_t i = 0; i < loop->action_size; ++i) printf("%s%.9g", i == 0 ? "" : ", ", (double)action[i]);
  printf("]}\n");
  fflush(stdout);
  free(times);
}

int main(int argc, char** argv) {
  if (argc != 4) fail("usage: step_time MODEL.lrn THREADS OBSERVATIONS");
  lram_model* model;
  lram_description about;
  lram_options options;
  loop loop = {0};
  lram_options_init(&options);
  options.threads = atoi(argv[2]);
  check(lram_open(argv[1], &options, &model));
  check(lram_describe(model, &about));
  check(lram_state_create(model, about.batch, &loop.state));
  bind_fields(&loop, model, &about);
  read_observations(&loop, argv[3]);
  long warm_up, steps;
  long long limit;
  while (scanf("%ld %ld %lld", &warm_up, &steps, &limit) == 3) window(&loop, warm_up, steps, limit);
  lram_state_free(loop.state);
  lram_close(model);
  return 0;
}
