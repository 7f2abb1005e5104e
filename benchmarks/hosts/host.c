/* host TEXT COUNT: the answer, then the median seconds of COUNT more, each of 100 texts, as lines of JSON. */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model.h"

#define MOST 4096
#define TOGETHER 100 /* the clock takes as long as an answer */

static float work[MODEL_WORK(MOST)], logits[MOST * MODEL_CLASSES];
static int labels[MOST];

static size_t answer(const char *text, const char *end)
{
    uint32_t codepoints[MOST];
    size_t n = 0;
    while (text < end && n < MOST) {
        codepoints[n++] = model_utf8(&text, end);
    }
    model_run(codepoints, n, work, logits, labels);
    return n;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    return *(const double *)a < *(const double *)b ? -1 : 1;
}

int main(int count_of_arguments, char **given)
{
    const char *text = given[1], *end = text + strlen(text);
    const int count = atoi(given[2]);
    double *times = malloc((size_t)(count + 1) * sizeof *times);
    size_t t, n = answer(text, end);
    int k, j;
    (void)count_of_arguments;
    putchar('"');
    for (t = 0; t < (ONE_LABEL ? 1 : n); t++) {
        fputs(model_labels[labels[t]], stdout);
    }
    puts("\"");
    fflush(stdout);
    for (k = 0; k < count; k++) {
        const double begun = now();
        for (j = 0; j < TOGETHER; j++) {
            answer(text, end);
        }
        times[k] = (now() - begun) / TOGETHER;
    }
    qsort(times, (size_t)count, sizeof *times, ascending);
    printf("%.9f\n", times[count / 2]);
    free(times);
    return 0;
}
