/* Runs a bundle from C and prints the actions, a line per row and step, then, as a message, whose they are:
 *     run_bundle reach.lram/native/model.lrn 200 [OBSERVATIONS]
 * OBSERVATIONS is a raw file of (steps, batch, observation_size) float32, or uint8 for images; default: zeros. */
#include <inttypes.h>
#include <lram.h>
#include <stdio.h>
#include <stdlib.h>

static void fail(const char* what) {
  fprintf(stderr, "error: %s\n", what);
  exit(1);
}

static void* array(size_t count, size_t size) {
  void* memory = calloc(count, size);
  if (memory == NULL) fail("no memory");
  return memory;
}

int main(int argc, char** argv) {
  lram_model* model;
  lram_state* state;
  lram_description about;
  if (argc < 3 || argc > 4) fail("usage: run_bundle MODEL.lrn STEPS [OBSERVATIONS]");
  FILE* file = argc == 4 ? fopen(argv[3], "rb") : NULL;
  if (argc == 4 && file == NULL) fail("the observations cannot be opened");
  if (lram_open(argv[1], NULL, &model) != LRAM_OK || lram_describe(model, &about) != LRAM_OK ||
      lram_state_create(model, about.batch, &state) != LRAM_OK)
    fail(lram_last_error());
  const size_t rows = (size_t)about.batch, count = rows * about.observation_size;
  const size_t size = about.observation == LRAM_IMAGE ? sizeof(uint8_t) : sizeof(float);
  void *observation = array(count, size), *action = array(rows * about.action_size, sizeof(int64_t));
  float *return_to_go = array(rows, sizeof(float)), *reward = array(rows, sizeof(float));
  float* is_first = array(rows, sizeof(float));
  const lram_inputs inputs = {observation, return_to_go, reward, is_first};
  const lram_outputs outputs = {action, NULL};
  for (size_t row = 0; row < rows; ++row) {
    is_first[row] = 1; /* every row starts an episode, and so aims at the whole return */
    return_to_go[row] = about.target_return / about.reward_scale;
  }
  for (long step = 0; step < atol(argv[2]); ++step) {
    if (file != NULL && fread(observation, size, count, file) != count) fail("the observations end too early");
    /* Where a reward is known, here, from an episode's second step on: return_to_go -= its reward / reward_scale, and
     * if about.feedback is LRAM_REWARD_OBSERVED: reward = its reward / reward_scale. This robot knows none. */
    if (lram_step(state, &inputs, &outputs) != LRAM_OK) fail(lram_last_error());
    for (size_t i = 0; i < rows * about.action_size; ++i) {
      if (about.action == LRAM_DISCRETE)
        printf("%" PRId64, ((const int64_t*)action)[i]);
      else
        printf("%.9g", ((const float*)action)[i]);
      putchar((i + 1) % about.action_size == 0 ? '\n' : ' ');
    }
    for (size_t row = 0; row < rows; ++row) is_first[row] = 0;
  }
  fprintf(stderr, "%s, checkpoint ", about.name);
  for (size_t i = 0; i < 32; ++i) fprintf(stderr, i < 31 ? "%02x" : "%02x\n", about.source_sha256[i]);
  lram_state_free(state);
  lram_close(model);
}
