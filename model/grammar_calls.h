/* Tool calls as rules: what a model must write that has to call one of some tools. */
#pragma once

#include "base/json.h"
#include "model/grammar_rules.h"
#include "model/vocabulary_trie.h"

/* `list` is an array of {"name", "arguments"}: the name as output_call_name has it, and the schema
 * of the arguments, if there is one. The node is one call, in the syntax of the trie's vocabulary
 * (trie->call), from the name to the end of the arguments. An entry without a name stands for a
 * call whose name is there already, as output_force_call has it. */
uint32_t calls_compile(struct rules *rules, const struct json *list,
                       const struct vocabulary_trie *trie);
