"""Writes tests/parity/fixtures/tokenizer: a small WordPiece vocabulary and what the real package makes of difficult text.

  python tests/parity/tokenizer.py
Made with tokenizers 0.23.3 and transformers 5.23.0. tests/unit/test_wordpiece.c demands equality.

  vocab.txt, tokenizer_config.json   the tokenizer in the older layout
  expected.json                      variants: {name, tokenizer (tokenizer.json without its vocabulary),
                                     unicode (FNV-1a 64 over the normal form and class of every code point),
                                     cases: [{text or hex, ids, offsets (bytes), decoded}]}
"""
import codecs
import copy
import json
import pathlib
import unicodedata

import tokenizers
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = pathlib.Path(__file__).parent / "fixtures" / "tokenizer"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    "", " ", "\t\r\n", "Hello, world!", "The captain sold the red boat; she bought it back.",
    "Caf\u00e9 na\u00efve r\u00e9sum\u00e9 \u00c5ngstr\u00f6m \u00d8re \u0141\u00f3d\u017a", "Cafe\u0301 e\u0316\u0301 e\u0301\u0316 q\u0307\u0323 \u1e69 s\u0323\u0307",
    "\u4e2d\u6587\u5b57\u7b26 mixed\u4e2dtext \u3400\U00020000\uf900\u2f00", "\u3053\u3093\u306b\u3061\u306f\u30ab\u30bf\u30ab\u30ca \uff76\uff9e",
    "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab \u302e\u302f\ud55c\u302f", "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 \u0e01\u0e33", "\u0939\u093f\u0928\u094d\u0926\u0940 \u0958 \u09cb \u0b94",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd", "zero\u200bwidth \u200c\u200d\ufeff join\u00ader soft\u00adhyphen",
    "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u0627\u0644\u0639\u064e\u0631\u064e\u0628\u0650\u064a\u0651\u0629 \u202eright\u202c \u061f\u060c\u061d", "\u0130stanbul I\u0131\u0130i\u0307 D\u0130YARBAKIR", "Stra\u00dfe STRASSE \u1e9e \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2 \u039f\u0394\u039f\u03a3",
    "\ufb01nd \ufb02ow \u01c5 \u01c4 \u2168 \u24b6 \u1d2c", "a" * 99, "a" * 100, "a" * 101, "x" + "e\u0301" * 100, "b" * 99 + "\u00e9", "supercalifragilisticexpialidocious " * 3,
    "[MASK]", "a [MASK] b", "foo[MASK]bar", "[mask] [MASK [CLS][SEP]", "[[MASK]]", "[PAD] [UNK] [unused1]", "##ing ## #ing running", "3.14 1,000,000 \u00bd \u00b2 \u0663\u0664 \uff11\uff12 0x1F",
    "tab\there\u00a0nbsp\u2003em\u2028line\u2029para\u3000wide\u1680ogham\u180e", "a\u0000b\u0001c\u007fd\u0085e\u009ff\ufffdg \u000bvt\u000cff \u001cfs", "don't can't it's 'quoted' \u2018curly\u2019 \u201cdouble\u201d l'\u00e9t\u00e9",
    "snake_case __init__ a-b a\u2014b a\u2013b a\u2011b a/b a\\b $5 <tag> ^ ` ~ | = + \u00a7 \u00b6 \u00a9 \u20ac", "\u222b\u2211\u221a \u2264 \u2260 \u2208 \u211d \U0001d4d0\U0001d7d8 \u212b \u2126 \u2f81a",
    "\u166d\u061d\u2e5d\u0890\u08e2\U000110cd\U00013430 \u1c89\ua7cb\U00010d50\U00016ea0 \U00011938 \u1acf\u1df6\u0334\u0897", "\ue000\uf8ff\U000f0000\U0010ffff \ufdd0\uffff", "\u0344\u0344\u0316 \u0f73\u0f71\u0f72 \u0f75\u0f80\u0f81",
    "a\u0345\u0334\u0315\u0323 \u0300\u0301abc \u093c\u0915\u093c", "not do not is n't I 'm we 've they 're you 's . , ! ? ' x", "\U0001f1e6\u0301 \u20dd\u20e0 \u0903\u0904 \u0488\u0489",
    "UPPER lower MiXeD \u00c0\u00c9\u00ce \u0416\u0443\u043a \u0419\u0439 \u0401\u0451 \u0531\u0561 \u10a0\u2d00 \u13a0\uab70 \u1e00", "https://example.com/a?b=c&d=e#f user@example.com", "line one\nline two\r\n\r\nline three",
    "The end of the end, THE END.The endx QQ QQx xQQ wOrld world worlds sp ace  hello \t hello\u00a0hello x  y",
]
RAW = [b"abc\xff\xfedef", b"\xc3", b"a\xc3(b", b"\xe2\x82", b"\xe2\x28\xa1 x", b"\xf0\x9f\x98", b"\xed\xa0\x80z", b"\xc0\xaf\xe0\x80\xaf\xf5\x80", b"\xf4\x90\x80\x80", b"caf\xe9 na\xefve",
       b"word\x80word [MA\xffSK] [MASK]\xff\xc3\xa9\xcc\x81\xcc"]


def replace_counted(error):
    places.append((error.start, error.end))
    return "\ufffd", error.end


codecs.register_error("counted", replace_counted)


def decode(data):
    """Text, and the byte at which each of its characters starts (and the end)."""
    global places
    places = []
    text = data.decode("utf-8", "counted")
    starts, at, bad = [], 0, dict(places)
    for c in text:
        starts.append(at)
        at = bad[at] if at in bad else at + len(c.encode())
    return text, starts + [at]


def train():
    names = [unicodedata.name(chr(c), "") for c in range(0x20, 0x2c00)]
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=True)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=1900, special_tokens=SPECIAL, show_progress=False)
    tok.train_from_iterator([n.lower() for n in names] + TEXTS * 3, trainer)
    vocab = sorted(tok.get_vocab(), key=tok.get_vocab().get)
    extra = ["caf\u00e9", "\u00e9", "##\u00e9", "The", "Caf\u00e9", "\u0130stanbul", "##\u0130", "Stra\u00dfe", "stra\u00dfe", "##\u0301", "e\u0301", "UPPER", "A", "##A", "\u212b", "\u30ab", "##\u30ab", "end", "the", "world"]
    extra += ["##" + "a" * n for n in (2, 3, 7, 50)] + [chr(c) for c in range(0x4e00, 0x4e40)] + [chr(c) for c in range(33, 127)] + ["##" + chr(c) for c in range(33, 127)]
    return list(dict.fromkeys(vocab + extra))


def build(vocab):
    ids = {piece: i for i, piece in enumerate(vocab)}
    tok = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=True)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece(prefix="##")
    tok.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                                                       special_tokens=[(t, ids[t]) for t in ("[CLS]", "[SEP]")])
    tok.add_special_tokens(SPECIAL)
    return json.loads(tok.to_str())


def variants(vocab):
    base = build(vocab)

    def norm(name, **flags):
        d = copy.deepcopy(base)
        d["normalizer"].update(flags)
        return name, d

    yield norm("uncased")
    yield norm("cased", lowercase=False)
    yield norm("cased, accents stripped", lowercase=False, strip_accents=True)
    yield norm("uncased, accents kept", strip_accents=False)
    yield norm("not cleaned", clean_text=False, handle_chinese_chars=False)
    d = copy.deepcopy(base)
    d["model"]["max_input_chars_per_word"], d["decoder"], d["normalizer"] = 6, None, None
    yield "no normalizer, short words, no decoder", d
    d = copy.deepcopy(base)
    d["decoder"]["cleanup"] = False
    flags = [("The end", dict(normalized=True)), ("wOrld", dict(normalized=True, single_word=True)), ("QQ", dict(single_word=True)),
             ("hello", dict(lstrip=True, rstrip=True)), ("caf\u00e9", dict(normalized=True)), ("x  y", dict(rstrip=True)), ("the", dict(normalized=True, lstrip=True))]
    fresh = len(vocab)
    for content, given in flags:
        token = dict(id=vocab.index(content) if content in vocab else fresh, content=content, single_word=False, lstrip=False,
                     rstrip=False, normalized=False, special=False, **{})
        fresh += content not in vocab
        token.update(given)
        d["added_tokens"].append(token)
    yield "added tokens", d


def unicode_hash(tok):
    """FNV-1a over "normal form of a<c>b" and the number of words that a<c>b is cut into, for every code point."""
    h = 0xCBF29CE484222325
    for code in range(1, 0x110000):
        if 0xD800 <= code < 0xE000:
            continue
        text = f"a{chr(code)}b"
        normal = tok.normalizer.normalize_str(text) if tok.normalizer else text
        words = len(tok.pre_tokenizer.pre_tokenize_str(text))
        for byte in normal.encode() + bytes([words]):
            h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def case(tok, data):
    text, starts = decode(data)
    got = tok.encode(text, add_special_tokens=False)
    plain = text.encode() == data and "\0" not in text
    out = {"text": text} if plain else {"hex": data.hex()}
    out["ids"] = got.ids
    out["offsets"] = [starts[o] for pair in got.offsets for o in pair]
    decoded = tok.decode(got.ids, skip_special_tokens=False)
    out["decoded"] = decoded
    return out


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    vocab = train()
    (OUT / "vocab.txt").write_text("".join(p + "\n" for p in vocab), encoding="utf-8")
    (OUT / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "tokenizer_class": "BertTokenizer"}, indent=2) + "\n")
    result = {"made_with": {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__}, "variants": []}
    for name, description in variants(vocab):
        tok = Tokenizer.from_str(json.dumps(description))
        cases = [case(tok, t.encode()) for t in TEXTS] + [case(tok, r) for r in RAW]
        description["model"]["vocab"] = {}
        result["variants"].append({"name": name, "unicode": unicode_hash(tok), "tokenizer": description, "cases": cases})
    fast = transformers.BertTokenizerFast.from_pretrained(OUT)
    for text, want in zip(TEXTS, result["variants"][0]["cases"]):
        assert fast(text, add_special_tokens=False)["input_ids"] == want["ids"], text
    with open(OUT / "expected.json", "w") as out:
        out.write(json.dumps({k: v for k, v in result.items() if k != "variants"})[:-1] + ', "variants": [\n')
        out.write(",\n".join(json.dumps({k: w for k, w in v.items() if k != "cases"})[:-1] + ', "cases": [\n'
                             + ",\n".join(json.dumps(c, separators=(",", ":")) for c in v["cases"]) + "]}" for v in result["variants"]))
        out.write("]}\n")
    print(len(vocab), "pieces", len(TEXTS) + len(RAW), "texts")


main()
