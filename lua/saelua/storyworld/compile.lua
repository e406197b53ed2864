--- Compiles a line of saelua.storyworld.templates into a list of operations for saelua.storyworld.render.
--
-- Everything that a sentence says about its own words whatever the story is settled here, once: which words
-- are in a negated clause, in a quotation, in a question, which literal noun is the subject, where sentences
-- end.
-- @module saelua.storyworld.compile

local lexicon = require "saelua.storyworld.lexicon"
local words, verbs = lexicon.words, lexicon.verbs

local person_slots = { A = true, B = true, X = true, Y = true, W = true }
local thing_slots = { O = true, Q = true, G = true, L = true, D = true, M = true, K = true, H = true,
  C = true }
local place_slots = { P = true, R = true, S = true }
local env_slots = { weather = true, part = true, day = true, next = true, season = true }
local plural_slots = { W = true, K = true, H = true, C = true }
local roles = { s = "subject", o = "object", r = "recipient", w = "companion", t = "topic" }
local tenses = { p = "past", t = "present", f = "future", b = "base" }

-- "A.name/o" -> slot "A", form "name", role "object"; "K#left" -> slot "K", form "count", variable "left".
local function split_slot(item)
  local slot, rest = item:match("^(%u)(.*)$")
  if not slot then return nil end
  local letter = rest:match("/(%l)$")
  if letter then
    if not roles[letter] then return nil end
    rest = rest:sub(1, -3)
  end
  local role = roles[letter]
  if rest == "" then return slot, nil, role end
  if rest == "'s" then return slot, "poss", role end
  local mark, name = rest:match("^([.#])(%l+)$")
  if mark == "." then return slot, name, role end
  if mark == "#" then return slot, "count", role, name end
end

local slot_kinds = {
  { "person", person_slots, { name = true, the = true, job = true, mood = true, poss = true },
    { job = "predicate", mood = "predicate", poss = "possessor" }, "subject" },
  { "thing", thing_slots, { a = true, the = true, full = true, my = true, it = true, n = true, c = true,
    z = true, m = true, pl = true, wrong = true, count = true }, {}, "object" },
  { "place", place_slots, { at = true }, {}, "place" },
}

local function parse_slot(item)
  local slot, form, role, var = split_slot(item)
  for _, k in ipairs(slot_kinds) do
    if slot and k[2][slot] then
      if form and not k[3][form] then return nil end
      return { kind = k[1], slot = slot, form = form, var = var, role = role or k[4][form or ""] or k[5] }
    end
  end
end

local function parse_verb(item)
  local lemma, code, agree = item:match("^(%l+):(%l+):?(%S*)$")
  if not lemma or not verbs[lemma] then return nil end
  local op = { kind = "verb", verb = verbs[lemma], negated = code:sub(-1) == "n" }
  if op.negated then code = code:sub(1, -2) end
  if code ~= "v" and code ~= "" then
    op.tense = tenses[code]
    if not op.tense then return nil end
  end
  if agree == "sg" or agree == "pl" then op.agree = agree
  elseif agree ~= "" then
    op.slot, op.var = agree:match("^(%u?)#?(%l*)$")
    if not op.slot then return nil end
    if op.var == "" then
      op.var = nil
      if plural_slots[op.slot] and op.slot ~= "W" then op.agree = "pl" end
    end
  end
  return op
end

local function parse_item(item)
  local speaker, addressee = item:match('^"(%u)>(%u)$')
  if speaker then return { kind = "open", speaker = speaker, addressee = addressee } end
  if item == '"' then return { kind = "close" } end
  if item:sub(1, 1) == "#" then return { kind = "number", var = item:sub(2) } end
  local env = item:match("^@(%l+)$")
  if env and env_slots[env] then return { kind = "env", slot = env } end
  local lex = words[item]
  if lex then return { kind = lex.pos == "punct" and "punct" or "word", lex = lex } end
  return parse_slot(item) or parse_verb(item)
end

local function parse(items, at, template)
  local ops = {}
  while at <= #items do
    local item = items[at]
    if item == "[" then
      local alt = { kind = "alt" }
      repeat
        alt[#alt + 1], at = parse(items, at + 1, template)
      until items[at] ~= "|"
      ops[#ops + 1] = alt
    elseif item == "|" or item == "]" then
      return ops, at
    else
      local op = parse_item(item)
      if not op then
        error(("storyworld template '%s': '%s' is neither a lexicon word nor a slot"):format(template, item))
      end
      ops[#ops + 1] = op
    end
    at = at + 1
  end
  return ops, at
end

local ends = { ["."] = "statement", ["!"] = "exclamation", ["?"] = "question" }
local function punct_of(op) return op.kind == "punct" and op.lex.text or nil end

-- Facts that depend on an item's neighbours: the clause (negation, cause), the sentence (its type, where
-- capitals go), the quotation, and which literal noun is a subject.
local function mark_clause(ops, from, to)
  local negated = false
  for i = from, to do
    local op = ops[i]
    if op.negated or (op.lex and op.lex.negates) then negated = true end
  end
  local cause = ops[from].lex == words.because
  for i = from, to do
    ops[i].neg, ops[i].cause = negated, cause
  end
end

-- Is this item inside a quotation (its marks included)?
local function mark_quotes(ops)
  local quoted = false
  for _, op in ipairs(ops) do
    if op.kind == "open" then quoted = true end
    op.quoted = quoted
    if op.kind == "close" then quoted = false end
  end
end

-- Sentence types: a stretch that ends in . ! ? and never spans a quotation mark.
local function mark_types(ops)
  local start = 1
  local function close(to, kind)
    for i = start, to do ops[i].stype = kind end
    start = to + 1
  end
  for i, op in ipairs(ops) do
    local p = punct_of(op)
    if op.kind == "open" then close(i - 1, "statement") end
    if p and ends[p] then close(i, ends[p]) end
    if op.kind == "close" then close(i, ops[i - 1].stype or "statement") end
  end
  close(#ops, "statement")
end

-- Where a sentence ends, so that the next word gets a capital: not at `?" she asked`.
local function mark_ends(ops)
  for i, op in ipairs(ops) do
    local p, after = punct_of(op), ops[i + 1]
    if p and ends[p] and not (after and after.kind == "close") then op.ends = true end
    if op.kind == "close" and (not after or punct_of(ops[i - 1]) == ".") then op.ends = true end
  end
end

local function is_break(op)
  return op.kind == "punct" or op.kind == "open" or op.kind == "close" or (op.lex and op.lex.pos == "conj")
end

local function is_noun(op) return op.lex and (op.lex.pos == "noun" or op.lex.pos == "pron") end

-- The first noun of a clause is its subject, unless a verb, a preposition or another subject came before.
local mark_subject
local function mark_subjects(ops, free)
  local prep = false
  for _, op in ipairs(ops) do free, prep = mark_subject(op, free, prep) end
end

function mark_subject(op, free, prep)
  if is_break(op) then return true, false end
  if op.kind == "verb" then return false, false end
  if op.lex and op.lex.pos == "prep" then return false, true end
  if is_noun(op) then
    op.role = free and "subject" or (prep and "oblique" or "object")
    return false, prep
  end
  if op.kind == "person" and op.role == "subject" then return false, prep end
  if op.kind == "alt" then
    for _, sub in ipairs(op) do mark_subjects(sub, free) end
  end
  return free, prep
end

local function inherit(op)
  for _, sub in ipairs(op) do
    for _, o in ipairs(sub) do
      o.quoted, o.stype, o.neg, o.cause = op.quoted, op.stype, op.neg, op.cause
      local p = punct_of(o)
      if p and ends[p] then o.ends = true end
      if o.kind == "alt" then inherit(o) end
    end
  end
end

--- Compile one template.
-- @tparam string template see saelua.storyworld.templates for the notation
-- @treturn table compiled template; raises on an unknown word or slot
return function(template)
  local items = {}
  for item in template:gsub("[%[%]|]", " %0 "):gmatch("%S+") do items[#items + 1] = item end
  local mood = "neutral"
  local first = items[1]
  if first == "+" or first == "-" then mood = first == "+" and "pos" or "neg"
  elseif first == "~A" then mood = "mood"
  elseif first == "~w" then mood = "weather" end
  local ops = parse(items, mood == "neutral" and 1 or 2, template)
  local from = 1
  for i, op in ipairs(ops) do
    if is_break(op) and i > from then
      mark_clause(ops, from, i - 1)
      from = i
    end
  end
  mark_clause(ops, from, #ops)
  mark_quotes(ops)
  mark_types(ops)
  mark_ends(ops)
  mark_subjects(ops, true)
  for _, op in ipairs(ops) do if op.kind == "alt" then inherit(op) end end
  return { ops = ops, mood = mood, source = template }
end
