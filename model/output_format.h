/* The table of output formats, as the parser reads it. A family that marks its text in a new way
 * gets an entry in output_format.c, and a reader of its own only if its arguments are no JSON. */
#pragma once

#include "model/output.h"
#include "model/output_pairs.h"

enum { OUTPUT_MAX_SYNTAXES = 2 };

enum output_arguments {
    ARGUMENTS_AS_THEY_ARE,
    ARGUMENTS_IN_PAIRS,  /* keys and values in tags: see output_pairs.h */
    ARGUMENTS_IN_OBJECT, /* a JSON object has name and arguments: see output_object.h */
    ARGUMENTS_IN_PYTHON, /* calls of Python in a fence: see output_python.h */
};

/* One way to write a call: begin, name, name_end, arguments, one of the ends. Where name and
 * arguments are written together, `forced` and `name_end` are how a call that must come is begun.
 */
struct call_syntax {
    const char *begin;
    const char *name_end;
    const char *ends[2]; /* without any, the call ends where the next begins */
    enum output_arguments arguments;
    /* What stands around the name, which is then the id of the call; NULL: the name is plain. A
     * number follows `id_separator`. */
    const char *id_prefix, *id_separator;
    const char *id_begin;         /* after the name, before the call's id; NULL: it has none */
    const struct pair_tags *tags; /* ARGUMENTS_IN_PAIRS */
    const char *forced;           /* how a call that must come is begun; NULL: by `begin` */
};

/* Whether the name ends where the tag of the first key begins, which belongs to the arguments (or,
 * without any, where the call ends). */
bool call_name_ends_in_pairs(const struct call_syntax *syntax);

struct output_format {
    const char *name;
    const char *think_begin, *think_end; /* NULL: no reasoning */
    bool calls_end_reasoning;
    const char *section_begin, *section_end; /* around all calls; NULL: nothing */
    const char *message_end; /* after content and after a call: left out; NULL: nothing */
    /* Two that begin alike are told apart by the longer beginning. The first one is used to force
     * a call. Without a `begin`: none. */
    struct call_syntax calls[OUTPUT_MAX_SYNTAXES];
    const char *tokens[OUTPUT_MAX_MARKERS]; /* all markers that are tokens of a vocabulary */
    int required;                           /* the first so many decide for the format */
};
