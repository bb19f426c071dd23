// Made by scripts/contract_header.py from digseg_engine/contract.py; do not edit.
#pragma once
#include <cstddef>

namespace digseg::contract {

constexpr const char* kFormat = "digseg.bundle/2";
constexpr long long kVersion = 2;
constexpr float kAbsent = -20.0f;
constexpr size_t kTokenBuckets[] = {8, 16, 32, 77};
constexpr const char* kShippedBundle = "digseg_engine/assets/digseg-tiny-fp16";
constexpr size_t kMostNames = 65534;

constexpr const char* kImage = "image";  // float32 [B, 3, H, W]: RGB in -1..1; H and W are multiples of the stride
constexpr const char* kTokenIds = "token_ids";  // int64 [K, L]: token numbers, start and end tokens included
constexpr const char* kTokenMask = "token_mask";  // bool [K, L]: False at padding
constexpr const char* kTextKeys = "text_keys";  // graph [K, S, heads, d, L]: folded text keys of every scale
constexpr const char* kTextValues = "text_values";  // graph [K, S, heads, L, Co]: folded text values of every scale
constexpr const char* kEncoding = "encoding";  // graph [B, M, H/s, W/s]: all of a picture that no prompt changes; s is the stride
constexpr const char* kPresenceLogits = "presence";  // float32 [B, K]: is the prompt in the picture; the manifest has the threshold
constexpr const char* kLogits = "logits";  // float32 [B, K, H/r, W/r]: 0 is the decision border
constexpr const char* kLabelMap = "label_map";  // label [B, H, W]: 0 nothing, k + 1 the k-th name; uint8, uint16 with more than 255 names
constexpr const char* kScores = "scores";  // float32 [B, K]: mean probability over the cells whose logit is above 0, else 0

// The graphs in the order they are asked. An open bundle may lack `presence` and has no `labels`; a folded one has
// image encoder and labels.
enum Graph { kTextEncoder, kImageEncoder, kPresence, kMaskDecoder, kLabels, kGraphs };
struct GraphFile {
  const char *name, *file, *cpu_file, *data_file;
};
constexpr GraphFile kGraphFiles[kGraphs] = {
    {"text_encoder", "text_encoder.onnx", "text_encoder.fp32.onnx", "text_encoder.data"},
    {"image_encoder", "image_encoder.onnx", "image_encoder.fp32.onnx", "image_encoder.data"},
    {"presence", "presence.onnx", "presence.fp32.onnx", "presence.data"},
    {"mask_decoder", "mask_decoder.onnx", "mask_decoder.fp32.onnx", "mask_decoder.data"},
    {"labels", "labels.onnx", "labels.fp32.onnx", "labels.data"},
};

}  // namespace digseg::contract
