/* Prints what a bundle says of its robot, element by element; then runs it on observations that are far too large, and
 * prints its actions and how often its limits and its safety envelope held them:
 *     interface arm.lram/native/model.lrn STEPS */
#include <inttypes.h>
#include <lram.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 16 }; /* inputs, outputs */

static void must(lram_status status) {
  if (status == LRAM_OK) return;
  fprintf(stderr, "error: %s\n", lram_last_error());
  exit(1);
}

static void print(const lram_field* field, size_t element, const lram_element_facts* facts) {
  printf("%s %d: %s [%s] %g to %g", field->name, (int)element, facts->name, facts->unit, facts->low, facts->high);
  printf(isfinite(facts->most_change) ? ", by %g a tick\n" : "\n", facts->most_change);
}

int main(int argc, char** argv) {
  lram_model* model;
  lram_state* state;
  lram_description about;
  lram_field field;
  lram_element_facts facts;
  lram_account account;
  void *in[MOST] = {NULL}, *out[MOST] = {NULL};
  must(lram_open(argc == 3 ? argv[1] : NULL, NULL, &model));
  must(lram_describe(model, &about));
  must(lram_state_create(model, 1, &state));
  printf("rate: %g Hz\n", about.rate);
  for (size_t i = 0; i < about.inputs && i < MOST; ++i) {
    must(lram_input(model, i, &field));
    float* values = in[i] = calloc(field.size, sizeof(int64_t)); /* room for elements of any type */
    for (size_t k = 0; k < field.size && field.element == LRAM_FLOAT32; ++k)
      values[k] = strcmp(field.name, "is_first") == 0 ? 0 : 100; /* a new state starts an episode by itself */
    for (size_t k = 0; k < field.size && i == 0; ++k)
      must(lram_input_element(model, i, k, &facts)), print(&field, k, &facts);
  }
  for (size_t i = about.outputs; i-- > 0;) { /* the action is the first one, floats */
    must(lram_output(model, i, &field));
    if (i < MOST) out[i] = calloc(field.size, sizeof(int64_t));
  }
  for (size_t k = 0; k < field.size; ++k) must(lram_output_element(model, 0, k, &facts)), print(&field, k, &facts);
  for (long step = 0; step < atol(argv[2]); ++step) {
    must(lram_step_fields(state, (const void* const*)in, about.inputs, out, about.outputs));
    for (size_t k = 0; k < field.size; ++k) printf("%.9g%c", ((float*)out[0])[k], k + 1 < field.size ? ' ' : '\n');
  }
  uint64_t *clamped = calloc(field.size, sizeof *clamped), *slowed = calloc(field.size, sizeof *slowed);
  must(lram_state_account(state, 0, 0, &account, clamped, slowed));
  for (size_t k = 0; k < field.size; ++k)
    printf("%s %d: clamped %" PRIu64 ", slowed %" PRIu64 "\n", field.name, (int)k, clamped[k], slowed[k]);
  printf("%s: stopped %" PRIu64 "\n", field.name, account.stopped);
  lram_state_free(state);
  lram_close(model);
}
