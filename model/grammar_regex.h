/* Regular expressions, as ECMA-262 and most other dialects have them in common:
 *
 *   a  .  [a-z]  [^a-z]  \d \w \s \D \W \S  \n \r \t \f \v \0 \xHH \uHHHH \u{H...}  ( )  (?: )
 *   (?<name> )  |  *  +  ?  {m}  {m,}  {m,n}, each also with a ? after it (the same texts match),
 *   and ^ and $ at the ends of the alternatives that are not in a group
 *
 * \d, \w are those of ASCII, and \D, \W all other characters; \s and \S leave out what the dialects
 * do not agree about. `.` is any character but U+000A, U+000D, U+2028 and U+2029. What is not
 * regular (back-references, look-around) or rare (\b, \p, flags) is refused by name. */
#pragma once

#include "model/grammar_text.h"

/* What a (part of an) expression compiles to. */
struct regex_piece {
    uint32_t node;
    uint32_t least, most; /* characters of a text that matches; REPEAT_MAX: any number */
    uint32_t unit;        /* it is this one-character node, `least` to `most` times; or NODE_NONE */
};

enum regex_scope {
    REGEX_WHOLE,  /* all of the text has to match; ^ and $ change nothing */
    REGEX_SEARCH, /* a part of the text has to, where there is no ^ or $ */
};

/* `text` has to be UTF-8. Errors go to `rules`. */
struct regex_piece regex_compile(struct rules *rules, const char *text, size_t len,
                                 enum regex_scope scope, enum text_form form);
