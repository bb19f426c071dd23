#include "tokenizer.hpp"

#include <algorithm>
#include <queue>

#include "error.hpp"

namespace digseg {
namespace {

constexpr size_t kMostSteps = 8;
const char* const kPattern = "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+";

// The byte-level alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 upwards, in order.
void byte_alphabet(std::string (&names)[256]) {
  char32_t next = 256;
  for (unsigned b = 0; b < 256; ++b) {
    const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    append_utf8(names[b], printable ? b : next++);
  }
}

bool optional_text(const Json& object, const char* key) {
  const Json* value = object.find(key);
  return value != nullptr && value->is(Json::String) && !value->text.empty();
}

bool optional_true(const Json& object, const char* key) {
  const Json* value = object.find(key);
  return value != nullptr && value->is(Json::Bool) && value->flag;
}

uint64_t pair_key(int64_t a, int64_t b) { return static_cast<uint64_t>(a) << 32 | static_cast<uint64_t>(b); }

// Length of the contraction at text[at] ("'s", "'re", ...), 0 when there is none.
size_t contraction(const Points& text, size_t at) {
  static const char32_t* const endings[] = {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"};
  for (const char32_t* ending : endings) {
    const size_t n = std::char_traits<char32_t>::length(ending);
    if (text.compare(at, n, ending) == 0) return n;
  }
  return 0;
}

bool is_other(char32_t c) { return !is_space(c) && !is_letter(c) && !is_number(c); }

}  // namespace

Tokenizer::Tokenizer(const std::vector<char>& body, const std::string& path) : path_(path) {
  byte_alphabet(byte_names_);
  const Json root = parse_json(body.data(), body.size(), path);
  read_model(root.at("model", Json::Object, path));
  if (const Json* normalizer = root.find("normalizer"))
    if (!normalizer->is(Json::Null)) read_normalizer(*normalizer);
  read_pre_tokenizer(root.at("pre_tokenizer", Json::Object, path));
  read_post_processor(root.at("post_processor", Json::Object, path));
  if (const Json* added = root.find("added_tokens")) read_added(*added);
}

void Tokenizer::unknown(const std::string& what) const {
  fail(DIGSEG_INCOMPATIBLE, path_ + " uses " + what + ", which this library does not know; expected CLIP's byte-pair "
                                "encoding; use a vocabulary file instead of free text");
}

void Tokenizer::read_model(const Json& model) {
  const std::string type = model.string_at("type", path_);
  if (type != "BPE") unknown("the model " + quoted(type));
  if (optional_text(model, "continuing_subword_prefix")) unknown("continuing_subword_prefix");
  for (const char* key : {"fuse_unk", "byte_fallback", "ignore_merges"})
    if (optional_true(model, key)) unknown(key);
  if (const Json* dropout = model.find("dropout"))
    if (dropout->is(Json::Number) && dropout->number > 0) unknown("dropout");
  if (optional_text(model, "end_of_word_suffix")) suffix_ = model.find("end_of_word_suffix")->text;
  const Json& vocabulary = model.at("vocab", Json::Object, path_);
  for (size_t i = 0; i < vocabulary.keys.size(); ++i) {
    const double id = vocabulary.items[i].number;
    if (!(id >= 0 && id < 1e9)) fail(DIGSEG_CORRUPT, path_ + ": a token number is not 0..1e9; export the bundle again");
    vocabulary_[vocabulary.keys[i]] = static_cast<int64_t>(id);
  }
  if (optional_text(model, "unk_token")) unknown_ = id_of(model.find("unk_token")->text);
  uint32_t rank = 0;
  for (const Json& item : model.at("merges", Json::Array, path_).items) {
    std::string left, right;
    if (item.is(Json::Array) && item.items.size() == 2) {
      left = item.items[0].text, right = item.items[1].text;
    } else {  // the older spelling, "left right"
      const size_t gap = item.text.find(' ');
      if (gap == std::string::npos) fail(DIGSEG_CORRUPT, path_ + ": a merge is not a pair; export the bundle again");
      left = item.text.substr(0, gap), right = item.text.substr(gap + 1);
    }
    merges_[pair_key(id_of(left), id_of(right))] = {rank++, id_of(left + right)};
  }
}

int64_t Tokenizer::id_of(const std::string& token) const {
  const auto found = vocabulary_.find(token);
  if (found == vocabulary_.end()) fail(DIGSEG_CORRUPT, path_ + ": token " + quoted(token) + " has no number; export the bundle again");
  return found->second;
}

void Tokenizer::read_normalizer(const Json& normalizer) {
  const std::string type = normalizer.string_at("type", path_);
  if (steps_.size() >= kMostSteps) unknown("more than 8 normalizers");
  if (type == "Sequence") {
    for (const Json& step : normalizer.at("normalizers", Json::Array, path_).items) read_normalizer(step);
  } else if (type == "NFC") {
    steps_.push_back(Step::Compose);
  } else if (type == "Lowercase") {
    steps_.push_back(Step::Lower);
  } else if (type == "Replace") {
    const Json* regex = normalizer.at("pattern", Json::Object, path_).find("Regex");
    if (regex == nullptr || regex->text != "\\s+") unknown("a Replace other than of spaces");
    spaces_to_ = normalizer.string_at("content", path_);
    if (spaces_to_.size() > 8 || std::count(steps_.begin(), steps_.end(), Step::Spaces) > 0) unknown("spaces that grow");
    steps_.push_back(Step::Spaces);
  } else {
    unknown("the normalizer " + quoted(type));
  }
}

void Tokenizer::read_pre_tokenizer(const Json& pre) const {
  const std::vector<Json>& steps = pre.at("pretokenizers", Json::Array, path_).items;
  if (pre.string_at("type", path_) != "Sequence" || steps.size() != 2) unknown("another pre-tokenizer");
  const Json* regex = steps[0].at("pattern", Json::Object, path_).find("Regex");
  if (steps[0].string_at("type", path_) != "Split" || regex == nullptr || regex->text != kPattern ||
      steps[0].string_at("behavior", path_) != "Removed" || !optional_true(steps[0], "invert"))
    unknown("another split than CLIP's");
  if (steps[1].string_at("type", path_) != "ByteLevel" || optional_true(steps[1], "add_prefix_space"))
    unknown("another byte-level step than CLIP's");
}

void Tokenizer::read_post_processor(const Json& post) {
  const std::string type = post.string_at("type", path_);
  if (type == "RobertaProcessing") {
    const std::vector<Json> &first = post.at("cls", Json::Array, path_).items, &last = post.at("sep", Json::Array, path_).items;
    if (first.empty() || last.empty()) unknown("a post-processor without start and end");
    start_ = id_of(first[0].text), end_ = id_of(last[0].text);
    return;
  }
  const std::vector<Json>* single = type == "TemplateProcessing" ? &post.at("single", Json::Array, path_).items : nullptr;
  if (single == nullptr || single->size() != 3 || (*single)[1].find("Sequence") == nullptr) unknown("the post-processor " + quoted(type));
  start_ = id_of((*single)[0].at("SpecialToken", Json::Object, path_).string_at("id", path_));
  end_ = id_of((*single)[2].at("SpecialToken", Json::Object, path_).string_at("id", path_));
}

void Tokenizer::read_added(const Json& added) {
  for (const Json& item : added.items) {
    for (const char* key : {"single_word", "lstrip", "rstrip"})
      if (optional_true(item, key)) unknown(std::string("an added token with ") + key);
    const std::string& content = item.string_at("content", path_);
    if (!content.empty()) added_.push_back({content, item.integer_at("id", 0, 1'000'000'000, path_), optional_true(item, "normalized")});
  }
}

Points Tokenizer::normalize(const Points& text) const {
  Points now = text;
  for (const Step step : steps_) {
    if (step == Step::Compose) now = compose(now);
    if (step == Step::Lower) now = lower(now);
    if (step != Step::Spaces) continue;
    const Points gap = from_utf8(spaces_to_);
    Points next;
    for (size_t i = 0; i < now.size(); ++i) {
      if (!is_space(now[i])) next += now[i];
      else if (i == 0 || !is_space(now[i - 1])) next += gap;
    }
    now = next;
  }
  return now;
}

// Finds added tokens first in the text as given, then in the normalised rest, as `tokenizers` does: the leftmost, and
// of those the longest. `plain` gets what lies between.
template <typename Text, typename Tokens, typename Found, typename Plain>
static void split_added(const Text& text, const Tokens& tokens, Found found, Plain plain) {
  size_t from = 0;
  for (size_t i = 0; i < text.size();) {
    const typename Tokens::value_type* best = nullptr;
    for (const auto& token : tokens)
      if (text.compare(i, token.first.size(), token.first) == 0 && (!best || token.first.size() > best->first.size())) best = &token;
    if (best == nullptr) { ++i; continue; }
    if (i > from) plain(text.substr(from, i - from));
    found(best->second);
    i += best->first.size();
    from = i;
  }
  if (from < text.size()) plain(text.substr(from));
}

std::vector<int64_t> Tokenizer::encode(const std::string& text, size_t limit) const {
  from_utf8(text);  // refuses what is not UTF-8
  std::vector<int64_t> ids{start_};
  std::vector<std::pair<std::string, int64_t>> raw;
  for (const Added& token : added_)
    if (!token.normalized) raw.emplace_back(token.content, token.id);
  split_added(text, raw, [&](int64_t id) { ids.push_back(id); }, [&](const std::string& part) { encode_plain(part, ids); });
  if (limit >= 2 && ids.size() + 1 > limit) ids.resize(limit - 1);
  ids.push_back(end_);
  return ids;
}

void Tokenizer::encode_plain(const std::string& text, std::vector<int64_t>& out) const {
  std::vector<std::pair<Points, int64_t>> tokens;
  for (const Added& token : added_)
    if (token.normalized) tokens.emplace_back(normalize(from_utf8(token.content)), token.id);
  split_added(normalize(from_utf8(text)), tokens, [&](int64_t id) { out.push_back(id); },
              [&](const Points& part) { encode_normalized(part, out); });
}

// Words by CLIP's pattern: contractions, runs of letters, single numbers, runs of the rest; spaces are dropped.
void Tokenizer::encode_normalized(const Points& text, std::vector<int64_t>& out) const {
  for (size_t i = 0; i < text.size();) {
    size_t end = i + contraction(text, i);
    if (end == i && is_letter(text[i])) {
      while (end < text.size() && is_letter(text[end])) ++end;
    } else if (end == i && is_number(text[i])) {
      ++end;
    } else if (end == i && is_other(text[i])) {
      while (end < text.size() && is_other(text[end])) ++end;
    } else if (end == i) {
      ++i;
      continue;
    }
    encode_word(to_utf8(text.substr(i, end - i)), out);
    i = end;
  }
}

void Tokenizer::encode_word(const std::string& bytes, std::vector<int64_t>& out) const {
  std::vector<int64_t> symbols;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const std::string& name = byte_names_[static_cast<unsigned char>(bytes[i])];
    const auto found = vocabulary_.find(i + 1 == bytes.size() ? name + suffix_ : name);
    if (found != vocabulary_.end()) symbols.push_back(found->second);
    else if (unknown_ >= 0) symbols.push_back(unknown_);
  }
  merge(symbols);
  out.insert(out.end(), symbols.begin(), symbols.end());
}

// Joins pairs, best rank first and leftmost among equals, with a heap: long words stay cheap. Entries that no longer
// describe the pair at their place are skipped.
void Tokenizer::merge(std::vector<int64_t>& symbols) const {
  struct Entry {
    uint32_t rank;
    size_t at;
    int64_t id;
    bool operator<(const Entry& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };
  const size_t n = symbols.size(), none = SIZE_MAX;
  std::vector<size_t> next(n), before(n);
  for (size_t i = 0; i < n; ++i) next[i] = i + 1 < n ? i + 1 : none, before[i] = i > 0 ? i - 1 : none;
  std::priority_queue<Entry> queue;
  const auto offer = [&](size_t at) {
    if (at == none || next[at] == none) return;
    const auto found = merges_.find(pair_key(symbols[at], symbols[next[at]]));
    if (found != merges_.end()) queue.push({found->second.rank, at, found->second.id});
  };
  for (size_t i = 0; i < n; ++i) offer(i);
  while (!queue.empty()) {
    const Entry best = queue.top();
    queue.pop();
    if (symbols[best.at] < 0 || next[best.at] == none) continue;
    const auto now = merges_.find(pair_key(symbols[best.at], symbols[next[best.at]]));
    if (now == merges_.end() || now->second.id != best.id) continue;
    const size_t gone = next[best.at];
    symbols[best.at] = best.id;
    symbols[gone] = -1;
    next[best.at] = next[gone];
    if (next[gone] != none) before[next[gone]] = best.at;
    offer(before[best.at]);
    offer(best.at);
  }
  symbols.erase(std::remove(symbols.begin(), symbols.end(), -1), symbols.end());
}

}  // namespace digseg
