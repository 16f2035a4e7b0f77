#include "server/bench_result.h"

#include "base/buffer.h"
#include "base/json.h"

static double share(double part, double whole)
{
    return whole > 0 ? 100 * part / whole : 0;
}

static double or_zero(double seconds)
{
    return seconds > 0 ? seconds : 0;
}

/* The device's time in none of the parts, and its time waiting for the host. */
static double rest_of(const struct bench_split *s)
{
    return or_zero(s->device - s->attention - s->moe - s->linear);
}

static double idle_of(const struct bench_decode *d)
{
    return d->split.device > 0 ? or_zero(d->step - d->split.device) : 0;
}

static void print_prefill(FILE *out, const struct bench_result *r)
{
    fprintf(out, "\nprefill\n%8s %8s %12s %12s %6s %14s\n", "prompt", "prompts", "tokens/s",
            "roofline", "share", "one alone, ms");
    for (int i = 0; i < r->n_prefill; i++) {
        const struct bench_prefill *p = &r->prefill[i];
        fprintf(out, "%8d %8d %12.0f %12.0f %5.0f%% %14.2f\n", p->length, p->prompts,
                p->tokens_per_s, p->roofline_tokens_per_s,
                share(p->tokens_per_s, p->roofline_tokens_per_s), p->alone_ms);
    }
}

static void print_decode(FILE *out, const struct bench_result *r)
{
    fprintf(out, "\ndecode\n%6s %8s %10s %10s %6s %9s %9s %9s %9s %9s\n", "seqs", "context",
            "tokens/s", "roofline", "share", "step, ms", "p50, ms", "p99, ms", "host, us",
            "p99, us");
    for (int i = 0; i < r->n_decode; i++) {
        const struct bench_decode *d = &r->decode[i];
        if (d->skipped)
            fprintf(out, "%6d %8d %s\n", d->seqs, d->context, d->skipped);
        else
            fprintf(out, "%6d %8d %10.0f %10.0f %5.0f%% %9.3f %9.3f %9.3f %9.0f %9.0f\n", d->seqs,
                    d->context, d->tokens_per_s, d->roofline_tokens_per_s,
                    share(d->tokens_per_s, d->roofline_tokens_per_s), d->step * 1e3,
                    d->step_p50 * 1e3, d->step_p99 * 1e3, d->host * 1e6, d->host_p99 * 1e6);
    }
}

static void print_part(FILE *out, double seconds, double roofline)
{
    fprintf(out, "  %8.3f (%3.0f%%)", seconds * 1e3, share(roofline, seconds));
}

static void print_split(FILE *out, const struct bench_result *r)
{
    fprintf(out,
            "\nwhere a decode step goes, ms (its roofline's share)\n"
            "%6s %8s %9s %17s %17s %17s %9s %14s\n",
            "seqs", "context", "device", "attention", "experts", "linear", "rest", "idle");
    for (int i = 0; i < r->n_decode; i++) {
        const struct bench_decode *d = &r->decode[i];
        const struct bench_split *s = &d->split;
        if (d->skipped || s->device <= 0)
            continue;
        fprintf(out, "%6d %8d %9.3f", d->seqs, d->context, s->device * 1e3);
        print_part(out, s->attention, s->attention_roofline);
        print_part(out, s->moe, s->moe_roofline);
        print_part(out, s->linear, s->linear_roofline);
        fprintf(out, " %9.3f %8.3f (%2.0f%%)\n", rest_of(s) * 1e3, idle_of(d) * 1e3,
                share(idle_of(d), d->step));
    }
}

void bench_print_tables(FILE *out, const struct bench_result *r)
{
    fprintf(out, "%s on %s (%s): %.0f GB/s read", r->model, r->backend, r->speed.name,
            r->speed.bytes_per_s * 1e-9);
    if (r->speed.flops_per_s > 0)
        fprintf(out, ", %.0f TFLOP/s", r->speed.flops_per_s * 1e-12);
    fprintf(out, "; ready in %.2f s\n", r->ready_s);
    if (r->n_prefill > 0)
        print_prefill(out, r);
    if (r->n_decode > 0) {
        print_decode(out, r);
        print_split(out, r);
    }
}

/* ---- JSON --------------------------------------------------------------------------------- */

static void put(struct buffer *b, const char *key, double value)
{
    buffer_printf(b, "%s\"%s\":", b->len > 0 && b->data[b->len - 1] != '{' ? "," : "", key);
    json_write_number(b, value);
}

static void put_text(struct buffer *b, const char *key, const char *text)
{
    buffer_printf(b, "%s\"%s\":", b->len > 0 && b->data[b->len - 1] != '{' ? "," : "", key);
    json_write_string(b, text, -1);
}

static void put_prefill(struct buffer *b, const struct bench_prefill *p)
{
    buffer_append_str(b, "{");
    put(b, "prompt_tokens", p->length);
    put(b, "prompts", p->prompts);
    put(b, "tokens_per_s", p->tokens_per_s);
    put(b, "roofline_tokens_per_s", p->roofline_tokens_per_s);
    put(b, "alone_ms", p->alone_ms);
    buffer_append_str(b, "}");
}

static void put_split(struct buffer *b, const struct bench_decode *d)
{
    const struct bench_split *s = &d->split;

    put(b, "device_ms", s->device * 1e3);
    put(b, "attention_ms", s->attention * 1e3);
    put(b, "attention_roofline_ms", s->attention_roofline * 1e3);
    put(b, "experts_ms", s->moe * 1e3);
    put(b, "experts_roofline_ms", s->moe_roofline * 1e3);
    put(b, "linear_ms", s->linear * 1e3);
    put(b, "linear_roofline_ms", s->linear_roofline * 1e3);
    put(b, "rest_ms", rest_of(s) * 1e3);
    put(b, "idle_ms", idle_of(d) * 1e3);
}

static void put_decode(struct buffer *b, const struct bench_decode *d)
{
    buffer_append_str(b, "{");
    put(b, "seqs", d->seqs);
    put(b, "context", d->context);
    if (d->skipped) {
        put_text(b, "skipped", d->skipped);
    } else {
        put(b, "tokens_per_s", d->tokens_per_s);
        put(b, "roofline_tokens_per_s", d->roofline_tokens_per_s);
        put(b, "step_ms", d->step * 1e3);
        put(b, "step_p50_ms", d->step_p50 * 1e3);
        put(b, "step_p99_ms", d->step_p99 * 1e3);
        put(b, "host_us", d->host * 1e6);
        put(b, "host_p99_us", d->host_p99 * 1e6);
        if (d->split.device > 0)
            put_split(b, d);
    }
    buffer_append_str(b, "}");
}

void bench_print_json(FILE *out, const struct bench_result *r)
{
    struct buffer b;

    buffer_init(&b, 1 << 20);
    buffer_append_str(&b, "{");
    put_text(&b, "model", r->model);
    put_text(&b, "backend", r->backend);
    put_text(&b, "device", r->speed.name);
    put(&b, "bytes_per_s", r->speed.bytes_per_s);
    put(&b, "flops_per_s", r->speed.flops_per_s);
    put(&b, "ready_s", r->ready_s);
    buffer_append_str(&b, ",\"prefill\":[");
    for (int i = 0; i < r->n_prefill; i++) {
        buffer_append_str(&b, i ? "," : "");
        put_prefill(&b, &r->prefill[i]);
    }
    buffer_append_str(&b, "],\"decode\":[");
    for (int i = 0; i < r->n_decode; i++) {
        buffer_append_str(&b, i ? "," : "");
        put_decode(&b, &r->decode[i]);
    }
    buffer_append_str(&b, "]}\n");
    fwrite(b.data, 1, b.len, out);
    buffer_free(&b);
}
