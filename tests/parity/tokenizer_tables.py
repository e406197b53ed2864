"""Writes core/data/wordpiece_tables.h: which code points the `tokenizers` package drops, splits on, strips and reorders.

The package carries its own Unicode tables (several, of different Unicode versions), so asking the
package itself, code point by code point, is the only way to be equal to it. Run with
  python tests/parity/tokenizer_tables.py > core/data/wordpiece_tables.h
Made with tokenizers 0.23.3, Python 3.11 (unicodedata 14.0).
"""
import tokenizers
import unicodedata
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import NFD, BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer


def bert(**flags):
    off = dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    return BertNormalizer(**{**off, **flags}).normalize_str


clean, strip, lower = bert(clean_text=True), bert(strip_accents=True), bert(lowercase=True)
finder = Tokenizer(WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
finder.add_tokens([AddedToken("Q", single_word=True, normalized=False)])
nfd, pieces = NFD().normalize_str, BertPreTokenizer().pre_tokenize_str
dropped, punctuation, marks, nonstarters, undecomposed, lowered, words = [], [], [], [], [], [], []
for code in range(0x80, 0x110000):
    if 0xD800 <= code < 0xE000:
        continue
    c = chr(code)
    if clean(f"a{c}b") == "ab":
        dropped.append(code)
    if len(pieces(f"a{c}b")) == 3:
        punctuation.append(code)
    if unicodedata.category(c) == "Cn" and finder.encode("Q" + c).ids[0] != 1:
        words.append(code)  # \w of the package's regex crate, in a newer Unicode than 14
    if nfd(c) == c:
        if strip(c) == "":
            marks.append(code)
        # U+0334 has combining class 1 and U+0345 has 240: a non-starter changes places with one of the two.
        if nfd(f"a{c}\u0334") != f"a{c}\u0334" or nfd(f"a\u0345{c}") != f"a\u0345{c}":
            nonstarters.append(code)
        if unicodedata.decomposition(c) and not unicodedata.decomposition(c).startswith("<"):
            undecomposed.append(code)
    if lower(c) != c.lower() and code != 0x130:
        lowered.append((code, ord(lower(c))))
# Canonical decompositions that Unicode 16 added: not in unicodedata 14, unknown to the package too.
undecomposed += [c for c in (0x105C9, 0x105E4, 0x11383, 0x11385, 0x1138E, 0x11391, 0x113C5, 0x113C7, 0x113C8,
                             *range(0x16121, 0x16129), *range(0x16D68, 0x16D6B)) if nfd(chr(c)) == chr(c)]
undecomposed.sort()


def ranges(codes):
    out = []
    for code in codes:
        if out and out[-1][1] == code - 1:
            out[-1][1] = code
        else:
            out.append([code, code])
    return out


def table(name, comment, codes):
    print(f"\n/* {comment} */\nstatic const sl_code_range {name}[] = {{")
    line = " "
    for first, last in ranges(codes):
        item = f" {{0x{first:x}, 0x{last:x}}},"
        if len(line) + len(item) > 110:
            print(line)
            line = " "
        line += item
    print(line + "\n};")


print(f"""/* Unicode facts of the `tokenizers` package {tokenizers.__version__}; written by tests/parity/tokenizer_tables.py, not by hand.
 *
 * The package's crates freeze several Unicode versions; the system's libutf8proc moves on. These
 * ranges (all outside ASCII, sorted) keep the tokenizer equal to the package whatever is installed. */
#ifndef SL_WORDPIECE_TABLES_H
#define SL_WORDPIECE_TABLES_H

#include <stdint.h>

typedef struct {{
  uint32_t first, last;
}} sl_code_range;""")
table("dropped_ranges", "Removed by clean_text: control, format, private use, U+FFFD.", dropped)
table("punctuation_ranges", "Always a word of their own.", punctuation)
table("mark_ranges", "Removed by strip_accents after decomposition.", marks)
table("nonstarter_ranges", "Characters with a combining class: only these are reordered by NFD.", nonstarters)
table("undecomposed_ranges", "Left whole, though newer Unicode versions decompose them.", undecomposed)
table("new_word_ranges", "Word characters (regex class w) newer than Unicode 14.", words)
lower_ranges = []
for code, to in lowered:
    if lower_ranges and lower_ranges[-1][1] == code - 1 and to - code == lower_ranges[-1][2]:
        lower_ranges[-1][1] = code
    else:
        lower_ranges.append([code, code, to - code])
print("""
/* Lower-case pairs newer than Unicode 14: first, last, distance to the small letter. */
static const struct {
  uint32_t first, last;
  int32_t distance;
} lower_ranges[] = {""")
for first, last, distance in lower_ranges:
    print(f"  {{0x{first:x}, 0x{last:x}, {distance}}},")
print("};\n\n#endif")
