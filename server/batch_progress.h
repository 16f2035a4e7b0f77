/* How a batch comes along, for whoever watches stderr: on a terminal one line that is redrawn a few
 * times a second, elsewhere a log line now and then; and the sums at the end. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct batch_counts {
    int64_t total;     /* lines of the input; -1: not known */
    int64_t to_skip;   /* results that the output held at the start */
    int64_t done;      /* lines that were dealt with, of any of the kinds below */
    int64_t answered;  /* status 200 */
    int64_t failed;    /* another status, or an error line */
    int64_t skipped;   /* the output had them */
    int64_t repeated;  /* a custom_id for the second time: not run */
    int64_t tokens_in; /* of finished lines */
    int64_t tokens_out;
    int64_t tokens_now; /* generated so far, also by lines in flight */
    int64_t steps;      /* of the engine, with anything in them */
    int64_t step_seqs;  /* sequences in all steps together */
    int64_t started_us; /* the model was ready */
};

struct batch_progress {
    bool terminal;
    int64_t shown_us;
    struct progress_mark {
        int64_t time_us, tokens;
    } marks[2]; /* the rate is that since the older one */
};

void batch_progress_init(struct batch_progress *progress);

/* Call it several times a second; it knows when to show something. */
void batch_progress_tick(struct batch_progress *progress, const struct batch_counts *counts);

/* Takes the line off the terminal, before something is logged. */
void batch_progress_clear(const struct batch_progress *progress);

void batch_progress_summary(const struct batch_counts *counts);
