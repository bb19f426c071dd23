/* PNG (RFC 2083) with its inflate (RFC 1951), small rather than fast; every read is bounded. */
#include "pictures.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  const unsigned char *in;
  size_t in_size, in_at;
  unsigned bits, bit_count;
  unsigned char *out;
  size_t out_size, out_at;
  int bad;
} Inflate;

typedef struct {
  uint16_t count[16], symbol[288];
} Huffman;

static unsigned take(Inflate *s, unsigned n) {
  while (s->bit_count < n) {
    if (s->in_at >= s->in_size) {
      s->bad = 1;
      return 0;
    }
    s->bits |= (unsigned)s->in[s->in_at++] << s->bit_count;
    s->bit_count += 8;
  }
  unsigned value = s->bits & ((1u << n) - 1u);
  s->bits >>= n;
  s->bit_count -= n;
  return value;
}

static void build(Huffman *h, const unsigned char *lengths, int n) {
  uint16_t offset[16];
  memset(h, 0, sizeof *h);
  for (int i = 0; i < n; ++i) h->count[lengths[i]]++;
  h->count[0] = 0;
  offset[1] = 0;
  for (int i = 1; i < 15; ++i) offset[i + 1] = (uint16_t)(offset[i] + h->count[i]);
  for (int i = 0; i < n; ++i)
    if (lengths[i]) h->symbol[offset[lengths[i]]++] = (uint16_t)i;
}

static int decode(Inflate *s, const Huffman *h) {
  int code = 0, first = 0, index = 0;
  for (int length = 1; length < 16 && !s->bad; ++length) {
    code |= (int)take(s, 1);
    if (code - h->count[length] < first) return h->symbol[index + code - first];
    index += h->count[length];
    first = (first + h->count[length]) << 1;
    code <<= 1;
  }
  s->bad = 1;
  return 0;
}

static void put(Inflate *s, unsigned char byte) {
  if (s->out_at < s->out_size) s->out[s->out_at++] = byte;
  else s->bad = 1;
}

static void stored(Inflate *s) {
  s->bits = s->bit_count = 0;
  if (s->in_at + 4 > s->in_size) {
    s->bad = 1;
    return;
  }
  size_t length = s->in[s->in_at] | (size_t)s->in[s->in_at + 1] << 8;
  s->in_at += 4;
  for (size_t i = 0; i < length && !s->bad; ++i) {
    if (s->in_at >= s->in_size) s->bad = 1;
    else put(s, s->in[s->in_at++]);
  }
}

static void codes(Inflate *s, const Huffman *literal, const Huffman *distance) {
  static const uint16_t base[] = {3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
  static const uint16_t extra[] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
  static const uint16_t far[] = {1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
  while (!s->bad) {
    int symbol = decode(s, literal);
    if (symbol < 256) {
      put(s, (unsigned char)symbol);
      continue;
    }
    if (symbol == 256) return;
    symbol -= 257;
    if (symbol >= 29) break;
    unsigned length = base[symbol] + take(s, extra[symbol]);
    int code = decode(s, distance);
    if (code >= 30) break;
    size_t back = far[code] + take(s, code < 2 ? 0u : (unsigned)(code / 2 - 1));
    if (back > s->out_at) break;
    while (length-- > 0 && !s->bad) put(s, s->out[s->out_at - back]);
  }
  s->bad = 1;
}

static void fixed_block(Inflate *s) {
  Huffman literal, distance;
  unsigned char lengths[320];
  for (int i = 0; i < 288; ++i) lengths[i] = (unsigned char)(i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8);
  build(&literal, lengths, 288);
  memset(lengths, 5, 30);
  build(&distance, lengths, 30);
  codes(s, &literal, &distance);
}

static void dynamic_block(Inflate *s) {
  static const unsigned char order[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
  Huffman code, distance;
  unsigned char lengths[320] = {0};
  int literals = (int)take(s, 5) + 257, distances = (int)take(s, 5) + 1, described = (int)take(s, 4) + 4, at = 0;
  if (literals > 286) s->bad = 1;
  for (int i = 0; i < described; ++i) lengths[order[i]] = (unsigned char)take(s, 3);
  build(&code, lengths, 19);
  memset(lengths, 0, sizeof lengths);
  while (at < literals + distances && !s->bad) {
    int symbol = decode(s, &code), times = 1;
    unsigned char value = (unsigned char)symbol;
    if (symbol == 16) {
      if (at == 0) s->bad = 1;
      value = at ? lengths[at - 1] : 0;
      times = 3 + (int)take(s, 2);
    } else if (symbol > 16) {
      value = 0;
      times = symbol == 17 ? 3 + (int)take(s, 3) : 11 + (int)take(s, 7);
    }
    if (at + times > literals + distances) s->bad = 1;
    while (times-- > 0 && !s->bad) lengths[at++] = value;
  }
  if (s->bad) return;
  build(&code, lengths, literals);
  build(&distance, lengths + literals, distances);
  codes(s, &code, &distance);
}

static int inflate_zlib(const unsigned char *in, size_t in_size, unsigned char *out, size_t out_size) {
  Inflate s = {in, in_size, 2, 0, 0, out, out_size, 0, 0};
  int last = 0;
  while (!last && !s.bad) {
    last = (int)take(&s, 1);
    switch (take(&s, 2)) {
      case 0: stored(&s); break;
      case 1: fixed_block(&s); break;
      case 2: dynamic_block(&s); break;
      default: s.bad = 1;
    }
  }
  return !s.bad && s.out_at == out_size;
}

static uint32_t big(const unsigned char *p) { return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3]; }

static unsigned char paeth(int a, int b, int c) {
  int p = a + b - c, da = abs(p - a), db = abs(p - b), dc = abs(p - c);
  return (unsigned char)(da <= db && da <= dc ? a : db <= dc ? b : c);
}

/* Rows hold a filter number and then their bytes; undoes the filters in place. */
static int unfilter(unsigned char *raw, int height, size_t row, size_t pixel) {
  for (int y = 0; y < height; ++y) {
    unsigned char *now = raw + (size_t)y * (row + 1), kind = *now++;
    const unsigned char *above = y ? now - (row + 1) : NULL;
    if (kind > 4) return 0;
    for (size_t i = 0; i < row; ++i) {
      int a = i >= pixel ? now[i - pixel] : 0, b = above ? above[i] : 0, c = above && i >= pixel ? above[i - pixel] : 0;
      int add = kind == 1 ? a : kind == 2 ? b : kind == 3 ? (a + b) / 2 : kind == 4 ? paeth(a, b, c) : 0;
      now[i] = (unsigned char)(now[i] + add);
    }
  }
  return 1;
}

static void to_rgb(unsigned char *to, const unsigned char *from, int colour, const unsigned char *palette) {
  if (colour == 3) {
    memcpy(to, palette + 3 * from[0], 3);
  } else if (colour == 0 || colour == 4) {
    to[0] = to[1] = to[2] = from[0];
  } else {
    memcpy(to, from, 3);
  }
  if (colour == 4 || colour == 6) { /* over white, with Pillow's rounding */
    unsigned alpha = from[colour == 4 ? 1 : 3];
    for (int c = 0; c < 3; ++c) {
      unsigned sum = (to[c] * alpha + 255u * (255u - alpha)) * 128u + (0x80u << 7);
      to[c] = (unsigned char)(((sum >> 8) + sum) >> 8 >> 7);
    }
  }
}

static unsigned char *read_all(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  unsigned char *data = NULL;
  long end = -1;
  if (file == NULL) return NULL;
  if (fseek(file, 0, SEEK_END) == 0) end = ftell(file);
  if (end > 0 && end < 1L << 30 && fseek(file, 0, SEEK_SET) == 0) data = malloc((size_t)end);
  if (data != NULL && fread(data, 1, (size_t)end, file) != (size_t)end) {
    free(data);
    data = NULL;
  }
  fclose(file);
  *size = data ? (size_t)end : 0;
  return data;
}

unsigned char *read_png(const char *path, int *width, int *height, const char **why) {
  static const unsigned char signature[] = {137, 80, 78, 71, 13, 10, 26, 10};
  static const int channels_of[] = {1, 0, 3, 1, 2, 0, 4};
  unsigned char palette[768] = {0}, *data, *packed, *raw = NULL, *rgb = NULL;
  size_t size = 0, packed_size = 0, at = 8;
  int colour = -1, w = 0, h = 0, channels = 0;
  *why = "not a readable file";
  data = read_all(path, &size);
  if (data == NULL) return NULL;
  packed = malloc(size);
  *why = "not a PNG, or cut short";
  if (packed == NULL || size < 33 || memcmp(data, signature, 8) != 0) goto done;
  while (at + 12 <= size) {
    size_t length = big(data + at);
    const unsigned char *body = data + at + 8;
    if (length > size - at - 12) goto done;
    if (memcmp(data + at + 4, "IHDR", 4) == 0 && length == 13) {
      w = (int)big(body), h = (int)big(body + 4), colour = body[9];
      *why = "an interlaced, 16-bit or too large PNG; save it as a plain 8-bit PNG";
      if (body[8] != 8 || body[12] != 0 || colour > 6 || channels_of[colour] == 0 || w < 1 || h < 1 || w > 1 << 15 || h > 1 << 15) goto done;
      channels = channels_of[colour];
      *why = "a damaged PNG";
    } else if (memcmp(data + at + 4, "PLTE", 4) == 0 && length <= sizeof palette) {
      memcpy(palette, body, length);
    } else if (memcmp(data + at + 4, "IDAT", 4) == 0) {
      memcpy(packed + packed_size, body, length);
      packed_size += length;
    }
    at += length + 12;
  }
  if (channels == 0 || packed_size < 6) goto done;
  const size_t row = (size_t)w * (size_t)channels;
  raw = malloc((row + 1) * (size_t)h);
  rgb = malloc((size_t)w * (size_t)h * 3);
  if (raw == NULL || rgb == NULL || !inflate_zlib(packed, packed_size, raw, (row + 1) * (size_t)h) || !unfilter(raw, h, row, (size_t)channels)) {
    free(rgb);
    rgb = NULL;
    goto done;
  }
  for (int y = 0; y < h; ++y)
    for (int x = 0; x < w; ++x)
      to_rgb(rgb + 3 * ((size_t)y * (size_t)w + (size_t)x), raw + (size_t)y * (row + 1) + 1 + (size_t)x * (size_t)channels, colour, palette);
  *width = w, *height = h;
done:
  free(raw);
  free(packed);
  free(data);
  return rgb;
}

static void big_out(unsigned char *p, uint32_t v) {
  for (int i = 0; i < 4; ++i) p[i] = (unsigned char)(v >> (24 - 8 * i));
}

static int chunk(FILE *file, const char *kind, const unsigned char *body, size_t length) {
  unsigned char word[4];
  uint32_t crc = 0xFFFFFFFFu;
  for (size_t i = 0; i < length + 4; ++i) {
    crc ^= i < 4 ? (unsigned char)kind[i] : body[i - 4];
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (0xEDB88320u & (0u - (crc & 1u)));
  }
  big_out(word, (uint32_t)length);
  if (fwrite(word, 1, 4, file) != 4 || fwrite(kind, 1, 4, file) != 4 || fwrite(body, 1, length, file) != length) return 0;
  big_out(word, crc ^ 0xFFFFFFFFu);
  return fwrite(word, 1, 4, file) == 4;
}

int write_png(const char *path, const unsigned char *grey, int width, int height) {
  const size_t row = (size_t)width + 1, total = row * (size_t)height, block = 65535;
  unsigned char head[13] = {0}, *raw = malloc(total), *body = malloc(total + 5 * (total / block + 1) + 6);
  size_t n = 0;
  uint32_t a = 1, b = 0;
  int good = 0;
  FILE *file = raw && body ? fopen(path, "wb") : NULL;
  if (file != NULL) {
    for (int y = 0; y < height; ++y) {
      raw[(size_t)y * row] = 0;
      memcpy(raw + (size_t)y * row + 1, grey + (size_t)y * (size_t)width, (size_t)width);
    }
    body[n++] = 0x78, body[n++] = 0x01;
    for (size_t at = 0; at < total; at += block) {
      const size_t take_now = total - at < block ? total - at : block;
      body[n++] = at + take_now == total;
      body[n++] = (unsigned char)take_now, body[n++] = (unsigned char)(take_now >> 8);
      body[n++] = (unsigned char)~take_now, body[n++] = (unsigned char)(~take_now >> 8);
      memcpy(body + n, raw + at, take_now);
      n += take_now;
    }
    for (size_t i = 0; i < total; ++i) a = (a + raw[i]) % 65521, b = (b + a) % 65521;
    big_out(body + n, b << 16 | a);
    n += 4;
    big_out(head, (uint32_t)width), big_out(head + 4, (uint32_t)height);
    head[8] = 8;
    good = fwrite("\211PNG\r\n\032\n", 1, 8, file) == 8 && chunk(file, "IHDR", head, 13) && chunk(file, "IDAT", body, n) && chunk(file, "IEND", body, 0);
    good = fclose(file) == 0 && good;
  }
  free(raw);
  free(body);
  return good ? 0 : -1;
}
