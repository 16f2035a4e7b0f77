/* The markers of DeepSeek's chat format, as its vocabularies spell them. */
#pragma once

#define MARKER_BOS               "<｜begin▁of▁sentence｜>"
#define MARKER_EOS               "<｜end▁of▁sentence｜>"
#define MARKER_USER              "<｜User｜>"
#define MARKER_ASSISTANT         "<｜Assistant｜>"
#define MARKER_THINK_BEGIN       "<think>"
#define MARKER_THINK_END         "</think>"
#define MARKER_CALLS_BEGIN       "<｜tool▁calls▁begin｜>"
#define MARKER_CALLS_END         "<｜tool▁calls▁end｜>"
#define MARKER_CALL_BEGIN        "<｜tool▁call▁begin｜>"
#define MARKER_CALL_SEP          "<｜tool▁sep｜>"
#define MARKER_CALL_END          "<｜tool▁call▁end｜>"
#define MARKER_TOOL_OUTPUT_BEGIN "<｜tool▁output▁begin｜>"
#define MARKER_TOOL_OUTPUT_END   "<｜tool▁output▁end｜>"
