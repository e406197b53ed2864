--- The words of storyworld: a closed lexicon with every inflection spelled out.
--
-- Data only. Lines of words are parsed once at load into lexemes: tables that hold what is known of a word
-- before any sentence is made (`text`, `pos`, `lemma`, `class`, `polarity`, `number`, `degree`, ...).
-- Sentence-level facts are added by saelua.storyworld.render.
-- @module saelua.storyworld.lexicon

local lexicon = {}

-- base, third person, past, -ing
local verbs = [[
be is was being|have has had having|do does did doing|can can could -|go goes went going
come comes came coming|walk walks walked walking|run runs ran running|take takes took taking
give gives gave giving|carry carries carried carrying|hold holds held holding|find finds found finding
lose loses lost losing|look looks looked looking|see sees saw seeing|want wants wanted wanting
like likes liked liking|love loves loved loving|buy buys bought buying|sell sells sold selling
pay pays paid paying|cost costs cost -|eat eats ate eating|drink drinks drank drinking
pick picks picked picking|count counts counted counting|keep keeps kept keeping|put puts put putting
hide hides hid hiding|open opens opened opening|close closes closed closing|paint paints painted painting
build builds built building|break breaks broke breaking|repair repairs repaired repairing
clean cleans cleaned cleaning|need needs needed needing|help helps helped helping
thank thanks thanked thanking|meet meets met meeting|visit visits visited visiting|live lives lived living
work works worked working|play plays played playing|sing sings sang singing|dance dances danced dancing
laugh laughs laughed laughing|smile smiles smiled smiling|cry cries cried crying|say says said saying
ask asks asked asking|answer answers answered answering|tell tells told telling|know knows knew knowing
think thinks thought thinking|feel feels felt feeling|sit sits sat sitting|stand stands stood standing
sleep sleeps slept sleeping|wait waits waited waiting|stay stays stayed staying|leave leaves left leaving
return returns returned returning|arrive arrives arrived arriving|start starts started starting
stop stops stopped stopping|bring brings brought bringing|show shows showed showing|send sends sent sending
write writes wrote writing|read reads read reading|cook cooks cooked cooking|bake bakes baked baking
grow grows grew growing|catch catches caught catching|feed feeds fed feeding|follow follows followed following
fall falls fell falling|rain rains rained raining|snow snows snowed snowing|shine shines shone shining
blow blows blew blowing|win wins won winning|make makes made making|hear hears heard hearing
remember remembers remembered remembering|forget forgets forgot forgetting|learn learns learned learning
teach teaches taught teaching|wear wears wore wearing|jump jumps jumped jumping|wash washes washed washing
share shares shared sharing|swim swims swam swimming|call calls called calling|wake wakes woke waking
drop drops dropped dropping|belong belongs belonged -|hope hopes hoped hoping|watch watches watched watching
greet greets greeted greeting|mend mends mended mending|sew sews sewed sewing|sail sails sailed sailing
get gets got getting|use uses used using|invite invites invited inviting|listen listens listened listening
end ends ended ending|own owns owned owning
]]

-- noun, plural, class, flags (p: fits into a box, r: can be broken and repaired, w: can be painted),
-- materials
local objects = [[
boat boats vehicle rw wooden|cart carts vehicle rw wooden|wagon wagons vehicle rw wooden,iron
bicycle bicycles vehicle rw iron|ball balls toy p leather,woolen|kite kites toy pr paper
doll dolls toy pr wooden,woolen|drum drums instrument rw wooden,iron|guitar guitars instrument r wooden
flute flutes instrument p wooden,silver|bell bells instrument p iron,silver,golden
book books paper p leather,paper|map maps paper p paper,leather|hat hats clothing p woolen,leather
coat coats clothing - woolen,leather|scarf scarves clothing p woolen|glove gloves clothing p woolen,leather
ring rings jewel p silver,golden,iron|key keys tool p iron,silver,golden|hammer hammers tool p iron,wooden
ladder ladders tool rw wooden,iron|spade spades tool r iron,wooden|lamp lamps furniture r glass,iron,silver
chair chairs furniture rw wooden,iron|table tables furniture rw wooden,glass
clock clocks furniture r wooden,silver,golden|mirror mirrors furniture r glass,silver
cup cups dish p clay,glass,silver|plate plates dish p clay,wooden|bottle bottles dish p glass,clay
umbrella umbrellas tool pr paper,leather|blanket blankets cloth - woolen
]]

local containers = [[
box boxes container pw wooden,iron,paper|bag bags container p leather,woolen|basket baskets container p wooden
chest chests container w wooden,iron|jar jars container p clay,glass
]]

-- things that are counted: noun, plural, class
local countables = [[
apple apples food|pear pears food|plum plums food|egg eggs food|cake cakes food|cookie cookies food
carrot carrots food|nut nuts food|fish fish food|flower flowers plant|shell shells stone|stone stones stone
button buttons cloth|candle candles tool
]]

local coins = "coin coins money"
local guests = "guest guests guest"

-- noun, plural, class, flags (h: lives in herds, t: kept at home)
local animals = [[
dog dogs pet t|cat cats pet t|rabbit rabbits pet t|bird birds wild t|horse horses farm ht|cow cows farm h
sheep sheep farm h|goat goats farm ht|duck ducks farm ht|hen hens farm h|pig pigs farm h|donkey donkeys farm t
mouse mice wild t
]]

-- noun, preposition, class (in: a building or room, out: open air)
local places = [[
harbor at out|market at out|garden in out|kitchen in room|forest in out|school at in|bridge near out
station at in|library in in|park in out|beach on out|farm on out|river at out|hill on out|village in out
castle in in|barn in in|shop in in|mill at in|lake at out|field in out|theater at in
]]

local jobs = [[
captain baker farmer doctor teacher painter sailor gardener carpenter musician nurse cook tailor fisher
miller hunter
]]

local names = {
  female = "Anna Clara Emma Grace Ivy Lena Maria Nora Rosa Sara Tessa Zoe Julia Alice",
  male = "Adam Ben Carl David Felix Hugo Ivan Jack Leo Max Oscar Tom Peter Simon",
}

local pronouns = [[
I me my mine 1 sg|you you your yours 2 sg|we us our ours 1 pl|he him his his 3 sg male
she her her hers 3 sg female
it it its its 3 sg|they them their theirs 3 pl
]]

-- words used as they stand, by part of speech; a suffix names word-level facts
local closed = {
  det = "a the this that every some many all another each both",
  ["det neg"] = "no",
  prep = "in on at near to from with of for by under behind into after before than like without about over "
    .. "through around as until",
  ["prep place"] = "down up",
  conj = "and but or so because when while if that",
  ["neg neg"] = "not never",
  ["pron sg"] = "who what which something everyone everything someone nobody nothing there",
  ["adv wh"] = "where why how",
  ["aux future"] = "will",
  adv = "very too then now soon again away home still only already together often always here outside today "
    .. "yesterday tomorrow early late well much almost later just also once inside back alone first quite "
    .. "really today "
    .. "next more instead out off everywhere suddenly far hard sometimes there",
  ["adv pos"] = "happily gently kindly gladly",
  ["adv neg_mood"] = "sadly angrily",
  ["adv manner"] = "slowly quickly quietly loudly carefully",
  intj = "yes please hello",
  ["intj no_mood"] = "oh",
  adj = "old young new long short whole same other last left ready full empty open hot deep high round "
    .. "enough heavy light sure different busy wet dry loud quiet fast strong such own made named "
    .. "second hungry thirsty",
  ["adj pos"] = "good kind dear nice bright beautiful friendly clean fine wonderful safe free useful",
  ["adj neg_mood"] = "bad dark broken dirty sick dangerous terrible wrong lost ugly poor",
  ["adj comparative"] = "bigger smaller older faster better heavier lighter slower stronger",
  ["adj superlative"] = "best biggest fastest",
  ["noun sg person"] = "friend girl boy woman man child mother father brother sister neighbor family",
  ["noun pl person"] = "friends people children sisters brothers",
  ["noun sg object"] = "bread soup tea milk water letter song story picture house door window room bed "
    .. "wall tree fire music dinner breakfast supper paint hair food wood wheat sea road ship grass roof hay",
  ["noun pl object"] = "vegetables clothes letters songs stories pictures trees nets stars doors "
    .. "animals clouds houses leaves dishes",
  ["noun sg animal"] = "animal",
  ["noun sg"] = "day time sun moon wind sky rain snow name color size world game race day week year thing "
    .. "work weather help idea plan hand hour noise way end home place mistake present price secret question "
    .. "number luck head nose word answer",
  ["noun pl"] = "days hours things games hands",
}

local moods = {
  pos = "happy proud calm excited glad cheerful",
  neg = "sad angry tired afraid lonely worried",
}

local colours = "red blue green yellow black white brown gray orange purple pink"
local coats = "black white brown gray"             -- colours that an animal can have
local sizes = "tiny small big huge"                -- in this order
local numbers = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
  .. "fifteen sixteen seventeen eighteen nineteen twenty"
local weathers = { pos = "sunny warm bright", neg = "rainy cold windy foggy snowy stormy" }
local times = "morning afternoon evening night"
local seasons = "spring summer autumn winter"
local weekdays = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"

-- One table of literal words: what a template may use as it stands. First definition wins.
local words = {}
lexicon.words = words

local function lexeme(text, pos, fields)
  local l = fields or {}
  l.text, l.pos, l.lemma = text, pos, l.lemma or text:lower()
  return l
end

local function define(l)
  if not words[l.text] then words[l.text] = l end
  return l
end

local function each_line(block, fn)
  for line in block:gmatch("[^|\n]+") do
    local f = {}
    for w in line:gmatch("%S+") do f[#f + 1] = w end
    if #f > 0 then fn(f) end
  end
end

local function list(text, pos, fields)
  local out = {}
  for w in text:gmatch("%S+") do
    local copy = {}
    for k, v in pairs(fields or {}) do copy[k] = v end
    out[#out + 1] = define(lexeme(w, pos, copy))
  end
  return out
end

lexicon.verbs = {}
each_line(verbs, function(f)
  local pos = (f[1] == "be" or f[1] == "do" or f[1] == "can") and "aux" or "verb"
  if f[1] == "have" then pos = "verb" end
  local v = { lemma = f[1] }
  v.base = lexeme(f[1], pos, { lemma = f[1] })
  v.third = lexeme(f[2], pos, { lemma = f[1], tense = "present", number = "sg" })
  v.plain = lexeme(f[1], pos, { lemma = f[1], tense = "present" })
  v.past = lexeme(f[3], pos, { lemma = f[1], tense = "past" })
  v.ing = lexeme(f[4], pos, { lemma = f[1] })
  lexicon.verbs[f[1]] = v
end)
local function be(text, tense, number)
  return lexeme(text, "aux", { lemma = "be", tense = tense, number = number })
end
lexicon.be = {
  present = { sg1 = be("am", "present", "sg"), sg = be("is", "present", "sg"),
    pl = be("are", "present", "pl") },
  past = { sg = be("was", "past", "sg"), pl = be("were", "past", "pl") },
}

-- Things: an entry has the lexemes of both numbers and what a story may do with it.
local function thing(f, kind)
  local t = { kind = kind, class = f[3], flags = f[4] or "", materials = {} }
  t.sg = lexeme(f[1], "noun", { lemma = f[1], number = "sg", kind = kind, class = f[3] })
  t.pl = lexeme(f[2], "noun", { lemma = f[1], number = "pl", kind = kind, class = f[3] })
  for m in (f[5] or ""):gmatch("[^,]+") do
    t.materials[#t.materials + 1] = define(lexeme(m, "adj", { class = "material" }))
  end
  return t
end

local function things(block, kind)
  local out = {}
  each_line(block, function(f) out[#out + 1] = thing(f, kind) end)
  return out
end

lexicon.objects = things(objects, "object")
lexicon.containers = things(containers, "object")
lexicon.countables = things(countables, "object")
lexicon.coins = things(coins, "object")[1]
lexicon.guests = things(guests, "person")[1]
lexicon.animals = things(animals, "animal")

lexicon.places = {}
each_line(places, function(f)
  local p = { noun = lexeme(f[1], "noun", { number = "sg", kind = "place", class = "place" }), class = f[3] }
  p.prep = lexeme(f[2], "prep")
  lexicon.places[#lexicon.places + 1] = p
end)

lexicon.jobs = {}
for w in jobs:gmatch("%S+") do
  local fields = { number = "sg", kind = "person", class = "occupation" }
  lexicon.jobs[#lexicon.jobs + 1] = lexeme(w, "noun", fields)
end
lexicon.names = {}
for sex, text in pairs(names) do
  local out = {}
  for w in text:gmatch("%S+") do
    out[#out + 1] = lexeme(w, "name", { number = "sg", kind = "person", sex = sex })
  end
  lexicon.names[sex] = out
end

-- pronouns[person .. number .. (sex or "")][case]
lexicon.pronouns = {}
each_line(pronouns, function(f)
  local fields = { "subject", "object", "possessor", "own" }
  local p = {}
  for i = 1, 4 do
    local facts = { lemma = f[1]:lower(), person = tonumber(f[5]), number = f[6], sex = f[7] }
    p[fields[i]] = lexeme(f[i], "pron", facts)
  end
  lexicon.pronouns[f[5] .. f[6] .. (f[7] or "")] = p
end)
words["it"] = lexeme("it", "pron", { number = "sg", person = 3 })

-- What a suffix of a key in `closed` says of its words.
local suffixes = {
  sg = { "number", "sg" }, pl = { "number", "pl" }, person = { "kind", "person" },
  object = { "kind", "object" }, animal = { "kind", "animal" }, comparative = { "degree", "comparative" },
  superlative = { "degree", "superlative" }, future = { "tense", "future" }, neg = { "negates", true },
  wh = { "class", "question" },
  pos = { "polarity", "pos" }, neg_mood = { "polarity", "neg" },
}
-- In a fixed order, because a word listed twice keeps its first definition.
local order = {
  "det", "det neg", "prep", "conj", "neg neg", "pron sg", "adv wh", "aux future", "adv", "adv pos",
  "adv neg_mood", "adv manner", "intj", "intj no_mood", "adj", "adj pos", "adj neg_mood", "adj comparative",
  "adj superlative", "noun sg person", "noun pl person", "noun sg object", "noun pl object", "noun sg animal",
  "noun sg", "noun pl", "prep place",
}
for _, key in ipairs(order) do
  local pos = key:match("^%S+")
  local fields = {}
  for tag in key:gmatch(" (%S+)") do
    local fact = suffixes[tag]
    if fact then fields[fact[1]] = fact[2] end
  end
  list(closed[key], pos, fields)
end
for _, w in ipairs { "nobody", "nothing" } do words[w].negates = true end
words.hour.takes_an = true -- spelt with a consonant, said with a vowel
words["its"] = lexicon.pronouns["3sg"].possessor
words["them"] = lexicon.pronouns["3pl"].object
words["'s"] = lexeme("'s", "part", { lemma = "'s" })

lexicon.moods = { pos = list(moods.pos, "adj", { polarity = "pos", class = "mood" }),
  neg = list(moods.neg, "adj", { polarity = "neg", class = "mood" }) }
lexicon.weathers = { pos = list(weathers.pos, "adj", { polarity = "pos", class = "weather" }),
  neg = list(weathers.neg, "adj", { polarity = "neg", class = "weather" }) }
lexicon.colours = list(colours, "adj", { class = "colour" })
lexicon.coats = list(coats, "adj", { class = "colour" })
lexicon.sizes = list(sizes, "adj", { class = "size" })
for i, l in ipairs(lexicon.coats) do lexicon.coats[i] = words[l.text] end
lexicon.times = list(times, "noun", { class = "time", number = "sg" })
lexicon.seasons = list(seasons, "noun", { class = "time", number = "sg" })
lexicon.weekdays = list(weekdays, "name", { class = "time", number = "sg" })
lexicon.numbers = {}
local function define_numbers()
  local n = 0
  for w in numbers:gmatch("%S+") do
    lexicon.numbers[n] = lexeme(w, "num", { count = n, number = n == 1 and "sg" or "pl" })
    n = n + 1
  end
  words["one"] = lexicon.numbers[1]
  words["two"] = lexicon.numbers[2]
end
define_numbers()

-- Nouns of the world may stand in a template as plain words too.
for _, group in ipairs { lexicon.objects, lexicon.containers, lexicon.countables, lexicon.animals } do
  for _, t in ipairs(group) do
    define(t.sg)
    define(t.pl)
  end
end
define(lexicon.guests.pl)
for _, p in ipairs(lexicon.places) do define(p.noun) end
for _, j in ipairs(lexicon.jobs) do define(j) end

for _, p in ipairs { ",", ".", "?", "!", '"', ":" } do words[p] = lexeme(p, "punct") end

return lexicon
