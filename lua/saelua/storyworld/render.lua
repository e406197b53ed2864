--- Says a compiled template (saelua.storyworld.compile) against the state of a story.
--
-- Realisation decides what depends on the discourse: pronoun, name or occupation; a or an; agreement and
-- tense; capitals and spacing. The text goes to `c.parts`; with `c.record` set, each word also leaves a table
-- of ground-truth attributes. Both modes draw the same random numbers, so the text is the same with and
-- without annotation. The state `c` is made by saelua.storyworld.plots, which alone decides what is true in
-- the story.
-- @module saelua.storyworld.render

local lexicon = require "saelua.storyworld.lexicon"
local rng = require "saelua.storyworld.rng"
local words, verbs, numbers, pronouns = lexicon.words, lexicon.verbs, lexicon.numbers, lexicon.pronouns
local be, not_lex, will_lex, s_lex = lexicon.be, words["not"], words.will, words["'s"]
local the_lex, a_lex, no_lex = words.the, words.a, words.no
local byte = string.byte

-- Interpreted on purpose: a story takes a new path through this code each time, so compiled traces are left
-- as soon as they are entered. Measured: text 6.5 MB/s interpreted, 4.1 compiled; annotation 8 times faster
-- interpreted.
require("jit").off(true, true)

local render = {}

local person_slots = { A = true, B = true, X = true, Y = true, W = true }

--- One draw of the story's random stream.
-- @tparam table c story state
-- @tparam integer n number of outcomes
-- @treturn integer 0 .. n-1
local function draw(c, n)
  local r = rng.draw(c.k0, c.k1, c.counter, n)
  c.counter = c.counter + 1
  return r
end
render.draw = draw

-- --- words out

local capital = setmetatable({}, { __index = function(t, w)
  local up = w:sub(1, 1):upper() .. w:sub(2)
  t[w] = up
  return up
end })
local vowels = {}
for _, v in ipairs { "a", "e", "i", "o", "u" } do vowels[byte(v)] = true end

local nobody = {} -- stands for "no entity": every fact of it is absent

-- One constructor with every field, so that the table is allocated once at its full size.
local function record(c, lex, op, role, e, number, tense, count) -- luacheck: ignore 561 (a list, not a maze)
  e = e or nobody
  local quoted = op.quoted or false
  local list = c.record
  list[#list + 1] = { part = c.n, attrs = {
    pos = lex.pos, lemma = lex.lemma, role = role, kind = e.kind or lex.kind, class = lex.class or e.class,
    number = number or lex.number, person = lex.person, tense = tense or lex.tense, story_tense = c.tense,
    negated = op.neg or false, because = op.cause or false, sentiment = c.sentiment, polarity = lex.polarity,
    degree = lex.degree, count = count or lex.count, referent = e.label,
    mentioned = e.kind and (e.seen or false),
    sex = e.sex or lex.sex, occupation = e.job and e.job.text,
    mood = e.mood and e.mood.polarity,
    colour = e.colour and e.colour.text, size = e.size and e.size.text,
    material = e.material and e.material.text,
    owner = e.owner and e.owner.label, location = e.loc and e.loc.label,
    in_quote = quoted,
    speaker = quoted and c.speaker and c.speaker.label or nil, sentence_type = op.stype, sentence = c.sent,
    position_in_sentence = c.position, purpose = c.purpose, plot = c.plot,
  } }
end

local function put(c, lex, op, role, e, number, tense, count)
  local parts, n, text = c.parts, c.n, lex.text
  if c.glue then c.glue = false else
    n = n + 1
    parts[n] = " "
  end
  local article = c.article
  if article > 0 then
    if vowels[byte(text)] or lex.takes_an then parts[article] = parts[article] .. "n" end
    c.article = 0
  end
  if c.cap then
    text = capital[text]
    c.cap = false
  end
  n = n + 1
  parts[n] = text
  c.n = n
  c.words, c.position = c.words + 1, c.position + 1
  if lex == a_lex then c.article = n end
  if c.record then record(c, lex, op, role, e, number, tense, count) end
end

-- `e` is the person, if the subject is one.
local function set_subject(c, role, number, person, e)
  if role == "subject" then c.subject, c.subject_number, c.subject_person = e, number, person end
end

-- --- people

local function rival(c, e)
  local other = e == c.A and c.B or c.A
  return other and other ~= e and other.sex == e.sex and other.last >= c.sent - 1
end

local function speech_person(c, op, e)
  if not op.quoted or not c.speaker then return 3 end
  if e == c.speaker then return 1 end
  if e == c.W then return 1 end
  if e == c.addressee then return 2 end
  return 3
end

local function pronoun_of(e, person)
  if e.number == "pl" then return pronouns[person .. "pl"] end
  if person == 1 then return pronouns["1sg"] elseif person == 2 then return pronouns["2sg"] end
  return pronouns[e.pronoun]
end

local function mention(c, e)
  e.seen, e.last = true, c.sent
  if e == c.W then
    c.A.seen, c.A.last, c.B.seen, c.B.last = true, c.sent, true, c.sent
  end
end

local function put_name(c, op, role, e)
  if e == c.W then
    put(c, c.A.name, op, role, c.A)
    put(c, words["and"], op, role, e, "pl")
    put(c, c.B.name, op, role, c.B)
  else
    put(c, e.name, op, role, e)
    e.named = true
  end
end

-- "name", "the" (the occupation) or "pronoun". A pronoun needs its person to be the subject of this
-- sentence, or mentioned no earlier than in the sentence before with no other person of that sex about.
local function choose_form(c, op, e, person)
  local form = op.form
  if form == "name" or form == "the" then return form end
  if person < 3 then return "pronoun" end
  local pair = e == c.W
  local near = c.subject == e or (e.last >= c.sent - 1 and (pair or not rival(c, e)))
  if near and (e.last == c.sent or draw(c, 100) < 70) then return "pronoun" end
  if pair or not e.job_said then return "name" end
  return (not e.named or draw(c, 100) < 25) and "the" or "name"
end

local function put_person(c, op, role, e, form)
  if form == "the" then
    put(c, the_lex, op, role, e, "sg")
    put(c, e.job, op, role, e)
  else
    put_name(c, op, role, e)
  end
  if role == "possessor" then
    c.glue = true
    put(c, s_lex, op, role, e)
  end
end

local function say_job(c, op, e)
  put(c, e.job, op, op.role, e)
  e.job_said, e.last = true, c.sent
end

local function say_person(c, op)
  local e, role = c[op.slot], op.role
  if op.form == "job" then return say_job(c, op, e) end
  if op.form == "mood" then return put(c, e.mood, op, role, e) end
  local person = speech_person(c, op, e)
  local form = choose_form(c, op, e, person)
  if form == "pronoun" then
    local case = (role == "subject" or role == "possessor") and role or "object"
    put(c, pronoun_of(e, person)[case], op, role, e, e.number)
  else
    put_person(c, op, role, e, form)
    person = 3
  end
  mention(c, e)
  set_subject(c, role, e.number, person, e)
end

-- --- things and places

local function noun_phrase(c, op, e, size, colour, material)
  local role, number = op.role, e.number
  if size and e.size then put(c, e.size, op, role, e) end
  if colour and e.colour then put(c, e.colour, op, role, e) end
  if material and e.material then put(c, e.material, op, role, e) end
  put(c, e.noun[number], op, role, e, number)
end

local function say_count(c, op, e)
  local n = c.num[op.var]
  local number = n == 1 and "sg" or "pl"
  put(c, n == 0 and no_lex or numbers[n], op, op.role, e, number, nil, n)
  put(c, e.noun[number], op, op.role, e, number, nil, n)
  set_subject(c, op.role, number, 3)
end

-- Forms that are one word and do not bring the thing itself into the discourse.
local single = {
  c = function(c, op, e) put(c, e.colour, op, "predicate", e) end,
  wrong = function(c, op, e) put(c, e.wrong, op, "predicate") end,
  z = function(c, op, e) put(c, e.size, op, "predicate", e) end,
  m = function(c, op, e) put(c, e.material, op, "predicate", e) end,
  n = function(c, op, e) put(c, e.noun.sg, op, op.role, e, "sg") end,
  pl = function(c, op, e)
    put(c, e.noun.pl, op, op.role, e, "pl")
    set_subject(c, op.role, "pl", 3)
  end,
}

local function say_it(c, op, e)
  local pronoun = pronouns[e.number == "pl" and "3pl" or "3sg"]
  put(c, pronoun[op.role == "subject" and "subject" or "object"], op, op.role, e, e.number)
end

local function say_a(c, op, e)
  put(c, a_lex, op, op.role, e, "sg")
  noun_phrase(c, op, e, draw(c, 2) == 0, true, draw(c, 100) < 35)
  c.it = e
end

local function say_the(c, op, e)
  put(c, the_lex, op, op.role, e, e.number)
  local full = op.form == "full" or e.twin or (op.form ~= "the" and draw(c, 100) < 30)
  noun_phrase(c, op, e, false, full, false)
  c.it = e
end

local function say_my(c, op, e)
  if not e.owner then return say_the(c, op, e) end
  say_person(c, { slot = e.owner == c.A and "A" or "B", role = "possessor", quoted = op.quoted,
    stype = op.stype, neg = op.neg, cause = op.cause })
  noun_phrase(c, op, e, false, e.twin or draw(c, 100) < 30, false)
  c.it = e
end

local phrase = { count = say_count, it = say_it, a = say_a, my = say_my, the = say_the, full = say_the }

local function say_thing(c, op)
  local e, form = c[op.slot], op.form
  if form and single[form] then return single[form](c, op, e) end
  if not form then
    local fresh = c.it == e and e.last >= c.sent - 1 and not e.twin
    form = fresh and draw(c, 100) < 45 and "it" or nil
  end
  local say_form = form and phrase[form] or say_the
  say_form(c, op, e)
  mention(c, e)
  if form ~= "count" then set_subject(c, op.role, e.number, 3) end
end

local function say_place(c, op)
  local e = c[op.slot]
  if op.form == "at" then put(c, e.place.prep, op, "place", e) end
  put(c, the_lex, op, "place", e, "sg")
  put(c, e.place.noun, op, "place", e)
  e.seen = true
end

-- --- verbs

local function agreement(c, op)
  if op.agree then return op.agree, 3 end
  if op.var then return c.num[op.var] == 1 and "sg" or "pl", 3 end
  if op.slot then
    local e = c[op.slot]
    if not person_slots[op.slot] then return e.number, 3 end
    return e.number, speech_person(c, op, e)
  end
  return c.subject_number, c.subject_person
end

local function finite(verb, tense, number, person)
  if verb.lemma == "be" then
    local forms = be[tense]
    if person == 2 then return forms.pl end
    if number == "sg" and person == 1 then return forms.sg1 or forms.sg end
    return forms[number]
  end
  if tense == "past" then return verb.past end
  if number == "sg" and person == 3 then return verb.third end
  return verb.plain
end

local function say_verb(c, op)
  local verb, tense = op.verb, op.tense or c.tense
  if tense == "base" then return put(c, verb.base, op, nil, nil) end
  local number, person = agreement(c, op)
  if tense == "future" then
    put(c, will_lex, op, nil, nil, number, tense)
    if op.negated then put(c, not_lex, op) end
    return put(c, verb.base, op, nil, nil, number, tense)
  end
  local plain_aux = verb.lemma == "be" or verb.lemma == "can" or not op.negated
  put(c, finite(plain_aux and verb or verbs["do"], tense, number, person), op, nil, nil, number, tense)
  if op.negated then
    put(c, not_lex, op)
    if verb.lemma == "do" then return end
    if not plain_aux then put(c, verb.base, op, nil, nil, number, tense) end
  end
end

-- --- the whole

local function end_sentence(c)
  c.sent, c.position, c.cap = c.sent + 1, 0, true
  c.subject, c.subject_number, c.subject_person = nil, "sg", 3
end

local run
local say = {
  person = say_person, thing = say_thing, place = say_place, verb = say_verb,
  word = function(c, op)
    put(c, op.lex, op, op.role)
    set_subject(c, op.role, op.lex.number or "sg", 3)
  end,
  punct = function(c, op)
    c.glue, c.article = true, 0
    put(c, op.lex, op)
    if op.ends then end_sentence(c) end
  end,
  open = function(c, op)
    c.speaker, c.addressee = c[op.speaker], c[op.addressee]
    put(c, words['"'], op)
    c.glue, c.cap = true, true
  end,
  close = function(c, op)
    c.glue = true
    put(c, words['"'], op)
    c.speaker, c.addressee = nil, nil
    if op.ends then end_sentence(c) end
  end,
  number = function(c, op)
    local n = c.num[op.var]
    put(c, numbers[n], op, nil, c.K)
    c.subject_number, c.subject_person = n == 1 and "sg" or "pl", 3
  end,
  env = function(c, op) put(c, c.env[op.slot], op, nil) end,
  alt = function(c, op) run(c, op[draw(c, #op) + 1]) end,
}

function run(c, ops)
  for i = 1, #ops do
    local op = ops[i]
    say[op.kind](c, op)
  end
end

--- Say a compiled template.
-- @tparam table c story state
-- @tparam table t result of saelua.storyworld.compile
-- @tparam string purpose name of the template's group, an attribute of every word
function render.say(c, t, purpose)
  local mood = t.mood
  if mood == "mood" then mood = c.A.mood.polarity
  elseif mood == "weather" then mood = c.env.weather.polarity end
  c.sentiment, c.purpose = mood, purpose
  run(c, t.ops)
end

return render
