#include "server/batch_progress.h"

#include "base/buffer.h"
#include "base/clock.h"
#include "base/log.h"

#include <stdio.h>
#include <unistd.h>

enum {
    TERMINAL_EVERY_US = 250 * 1000,
    LOG_EVERY_US = 10 * 1000 * 1000,
    MARK_EVERY_US = 5 * 1000 * 1000,
    TEXT_MAX = 256,
};

void batch_progress_init(struct batch_progress *progress)
{
    *progress = (struct batch_progress){.terminal = isatty(STDERR_FILENO)};
}

static double per_second(int64_t count, int64_t us)
{
    return us > 0 ? (double)count * 1e6 / (double)us : 0;
}

/* "3:07", "2:05:00" */
static void append_duration(struct buffer *out, int64_t seconds)
{
    if (seconds >= 3600)
        buffer_printf(out, "%lld:%02lld:%02lld", (long long)seconds / 3600,
                      (long long)seconds / 60 % 60, (long long)seconds % 60);
    else
        buffer_printf(out, "%lld:%02lld", (long long)seconds / 60, (long long)seconds % 60);
}

/* Seconds until the last line, at the pace so far; -1 when nobody can know. What the output held
 * already takes no time, so it counts on neither side. */
static int64_t seconds_left(const struct batch_counts *counts, int64_t now)
{
    int64_t worked = counts->answered + counts->failed;
    int64_t left = counts->total - counts->done - (counts->to_skip - counts->skipped);

    if (counts->total < 0 || worked == 0)
        return -1;
    if (left < 0)
        left = 0;
    return (int64_t)((double)(now - counts->started_us) * 1e-6 / (double)worked * (double)left);
}

static double tokens_per_second(struct batch_progress *progress, const struct batch_counts *counts,
                                int64_t now)
{
    struct progress_mark *marks = progress->marks;

    if (!marks[0].time_us)
        marks[0] = marks[1] = (struct progress_mark){counts->started_us, 0};
    double rate = per_second(counts->tokens_now - marks[0].tokens, now - marks[0].time_us);
    if (now - marks[1].time_us >= MARK_EVERY_US) {
        marks[0] = marks[1];
        marks[1] = (struct progress_mark){now, counts->tokens_now};
    }
    return rate;
}

void batch_progress_tick(struct batch_progress *progress, const struct batch_counts *counts)
{
    int64_t now = clock_us(), every = progress->terminal ? TERMINAL_EVERY_US : LOG_EVERY_US;
    struct buffer text;

    if (!progress->shown_us)
        progress->shown_us = progress->terminal ? now - every : now;
    if (now - progress->shown_us < every)
        return;
    progress->shown_us = now;
    buffer_init(&text, TEXT_MAX);
    buffer_printf(&text, "%lld", (long long)counts->done);
    if (counts->total >= 0)
        buffer_printf(&text, "/%lld", (long long)counts->total);
    buffer_append_str(&text, " lines");
    if (counts->failed)
        buffer_printf(&text, " (%lld failed)", (long long)counts->failed);
    buffer_printf(&text, ", %.0f tokens/s", tokens_per_second(progress, counts, now));
    int64_t left = seconds_left(counts, now);
    if (left >= 0) {
        buffer_append_str(&text, ", ");
        append_duration(&text, left);
        buffer_append_str(&text, " left");
    }
    /* The cursor stays in front, so that a log line begins in the first column. */
    if (progress->terminal)
        fprintf(stderr, "\033[K%s\r", text.data);
    else
        log_info("%s", text.data);
    buffer_free(&text);
}

void batch_progress_clear(const struct batch_progress *progress)
{
    if (progress->terminal)
        fputs("\033[K", stderr);
}

void batch_progress_summary(const struct batch_counts *counts)
{
    int64_t us = counts->started_us ? clock_us() - counts->started_us : 0;

    log_info("%lld lines: %lld answered, %lld failed, %lld skipped (the output had them), "
             "%lld with a custom_id that came before (not run)",
             (long long)counts->done, (long long)counts->answered, (long long)counts->failed,
             (long long)counts->skipped, (long long)counts->repeated);
    log_info("%lld tokens in, %lld tokens out in %.1f s: %.1f tokens/s out, %.1f lines/s; "
             "%lld steps of %.1f sequences",
             (long long)counts->tokens_in, (long long)counts->tokens_out, (double)us * 1e-6,
             per_second(counts->tokens_out, us), per_second(counts->answered + counts->failed, us),
             (long long)counts->steps,
             counts->steps ? (double)counts->step_seqs / (double)counts->steps : 0.0);
}
