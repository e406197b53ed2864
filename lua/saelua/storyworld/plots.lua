--- What happens in a story: makes a small world, runs one plot over it, keeps the facts true.
--
-- A plot is a plain function of the story `c`: it says groups of templates in order and, between them,
-- changes the world (owner, place, count, colour, mood), so that every later sentence agrees with every
-- earlier one.
-- @module saelua.storyworld.plots

local lexicon = require "saelua.storyworld.lexicon"
local compile = require "saelua.storyworld.compile"
local render = require "saelua.storyworld.render"
local world = require "saelua.storyworld.world"
local draw = render.draw
local pick, feel, own, holder = world.pick, world.feel, world.own, world.holder
local place, thing, many, object, at = world.place, world.thing, world.many, world.object, world.at

-- Interpreted on purpose: a story takes a new path through this code each time, so compiled traces are left
-- as soon as they are entered. Measured: text 6.5 MB/s interpreted, 4.1 compiled; annotation 8 times faster
-- interpreted.
require("jit").off(true, true)

local plots = {}

local groups = {}
for _, part in ipairs { "templates", "scenes" } do
  for name, lines in pairs(require("saelua.storyworld." .. part)) do
    local g = {}
    for i, line in ipairs(lines) do g[i] = compile(line) end
    groups[name] = g
  end
end
plots.groups = groups

-- --- telling

-- Say one template of a group, if possible one not yet used in this story.
local function say(c, name)
  local g = groups[name]
  local first = draw(c, #g)
  local t = g[first + 1]
  for i = 0, #g - 1 do
    local candidate = g[(first + i) % #g + 1]
    if not c.used[candidate] then
      t = candidate
      break
    end
  end
  c.used[t] = true
  render.say(c, t, name)
end

-- At most four groups in a row.
local function say_all(c, first, second, third, fourth)
  say(c, first)
  say(c, second)
  if third then say(c, third) end
  if fourth then say(c, fourth) end
end

local function maybe(c, percent, name)
  if draw(c, 100) < percent then say(c, name) end
end

-- had = gone + left, all at least 1
local function split_count(c, most)
  local n = c.num
  n.had = 3 + draw(c, most - 2)
  n.gone = 1 + draw(c, n.had - 1)
  n.left = n.had - n.gone
end

local function begin(c)
  say(c, "open")
  if draw(c, 100) < 40 then say(c, "job_" .. c.A.job.text) end
end

local function weather(c) maybe(c, 35, "weather_" .. c.env.weather.polarity) end
local function mood(c, percent) maybe(c, percent, "mood") end
local function meet(c)
  say(c, "meet")
  maybe(c, 45, "greet")
end

-- A proposes, B agrees or does not.
local function propose(c)
  say(c, "plan")
  if draw(c, 100) < 65 then
    say(c, "plan_yes")
    feel(c, c.A, "pos")
    say(c, "plan_more")
    maybe(c, 60, "plan_more")
  else
    say(c, "plan_no")
    feel(c, c.A, "neg")
    say(c, "mood")
    maybe(c, 50, "plan_talk")
  end
end

-- --- the plots

plots.list = {}
local function plot(name, fn) plots.list[#plots.list + 1] = { name = name, tell = fn } end

plot("gift", function(c)
  object(c, world.portable)
  begin(c)
  say(c, "have")
  maybe(c, 60, "describe")
  weather(c)
  meet(c)
  say_all(c, "want", "give")
  own(c.O, c.B)
  holder(c, c.B, c.A)
  say_all(c, "thank", "now_has")
  feel(c, c.A, "pos")
  maybe(c, 60, "recall_owner")
  maybe(c, 40, "recall_colour")
end)

plot("lost", function(c)
  object(c, world.portable)
  begin(c)
  say(c, "have")
  maybe(c, 40, "describe")
  say(c, "lose")
  c.O.loc = nil
  feel(c, c.A, "neg")
  mood(c, 70)
  meet(c)
  say_all(c, "ask_lost", "search")
  if draw(c, 100) < 75 then
    say(c, "found")
    own(c.O, c.A)
    feel(c, c.A, "pos")
    say(c, "thank")
    maybe(c, 40, "recall_colour")
  else
    say(c, "search")
  end
end)

plot("count_down", function(c)
  local way = draw(c, 3)
  c.K = many(pick(c, way == 0 and world.foods or lexicon.countables))
  split_count(c, 12)
  begin(c)
  weather(c)
  say(c, "counted")
  if way == 1 then meet(c) elseif draw(c, 2) == 0 then say(c, "interlude") end
  if way ~= 1 then meet(c) end
  say(c, way == 0 and "eat" or way == 1 and "share" or "drop")
  say(c, "left")
  if way == 1 then
    holder(c, c.B, c.A)
    maybe(c, 60, "thank")
    feel(c, c.A, "pos")
  end
  mood(c, way == 2 and 0 or 40)
  say(c, "recall_job")
end)

plot("count_up", function(c)
  c.K = many(pick(c, lexicon.countables))
  c.num.had, c.num.gone = 2 + draw(c, 9), 1 + draw(c, 9)
  c.num.sum = c.num.had + c.num.gone
  begin(c)
  say(c, "counted")
  meet(c)
  say_all(c, "add", "sum")
  weather(c)
  feel(c, c.A, "pos")
  mood(c, 40)
  maybe(c, 50, "recall_job")
end)

plot("sale", function(c)
  object(c)
  c.C = many(lexicon.coins)
  local n = c.num
  n.purse = 3 + draw(c, 16)
  n.price = 1 + draw(c, n.purse - 1)
  n.change = n.purse - n.price
  begin(c)
  say(c, "have")
  maybe(c, 50, "describe")
  meet(c)
  say_all(c, "purse", "want", "price", "buy")
  own(c.O, c.B)
  holder(c, c.B, c.A)
  say(c, "change")
  maybe(c, 50, "now_has")
  maybe(c, 60, "recall_owner")
end)

plot("pet", function(c)
  c.M = thing(c, pick(c, world.pets), lexicon.coats)
  own(c.M, c.A)
  begin(c)
  say_all(c, "pet", "pet_life")
  maybe(c, 60, "pet_life")
  say(c, "pet_gone")
  c.M.loc = c.R
  feel(c, c.A, "neg")
  mood(c, 50)
  meet(c)
  say(c, "pet_seek")
  maybe(c, 50, "pet_seek")
  say(c, "pet_back")
  feel(c, c.A, "pos")
  maybe(c, 70, "thank")
  mood(c, 30)
end)

plot("compare", function(c)
  object(c)
  local o = c.O
  local q = thing(c, o.noun)
  repeat q.colour = pick(c, lexicon.colours) until q.colour ~= o.colour
  local a = 1 + draw(c, 4)
  local b = 1 + (a - 1 + 1 + draw(c, 3)) % 4
  o.size, q.size, o.twin, q.twin = lexicon.sizes[a], lexicon.sizes[b], true, true
  c.Q = q
  own(q, c.B)
  if a > b then c.G, c.L = o, q else c.G, c.L = q, o end
  holder(c, c.G.owner, c.L.owner)
  begin(c)
  meet(c)
  say_all(c, "both_have", "compare")
  weather(c)
  say_all(c, "greater", "choose", "greater")
  maybe(c, 50, "recall_job")
end)

plot("race", function(c)
  if draw(c, 2) == 0 then holder(c, c.A, c.B) else holder(c, c.B, c.A) end
  begin(c)
  meet(c)
  weather(c)
  say_all(c, "race", "race", "race_end")
  at(c.R, c.A, c.B)
  feel(c, c.A, c.X == c.A and "pos" or "neg")
  mood(c, 70)
  say(c, "plan_talk")
  maybe(c, 70, "recall_job")
end)

plot("repair", function(c)
  object(c, world.fragile)
  begin(c)
  say(c, "have")
  maybe(c, 60, "describe")
  say(c, "broken")
  feel(c, c.A, "neg")
  mood(c, 60)
  meet(c)
  say_all(c, "repair", "repaired")
  feel(c, c.A, "pos")
  say(c, "thank")
  maybe(c, 50, "recall_colour")
end)

plot("paint", function(c)
  object(c, world.paintable)
  begin(c)
  say(c, "have")
  maybe(c, 50, "describe")
  meet(c)
  say(c, "paint")
  c.O.wrong, c.O.colour = c.O.colour, c.O.wrong
  say_all(c, "painted", "painted_end")
  feel(c, c.A, "pos")
  mood(c, 40)
  say(c, "recall_colour")
end)

plot("hide", function(c)
  object(c, world.portable)
  begin(c)
  say(c, "have")
  meet(c)
  say(c, "hide")
  c.O.loc = c.D
  maybe(c, 60, "weather_" .. c.env.weather.polarity)
  say_all(c, "guess", "guess", "reveal")
  feel(c, c.A, "pos")
  maybe(c, 60, "recall_colour")
  maybe(c, 60, "recall_owner")
end)

plot("herd", function(c)
  c.P.place = pick(c, world.open_air)
  c.P.label = c.P.place.noun.text
  if c.R.place == c.P.place then c.R = place(c, c.P, c.S) end
  if c.S.place == c.P.place then c.S = place(c, c.P, c.R) end
  c.H = many(pick(c, world.herds))
  split_count(c, 12)
  begin(c)
  say(c, "herd")
  c.H.loc = c.P
  maybe(c, 60, "herd_life")
  meet(c)
  weather(c)
  say_all(c, "herd_go", "herd_stay", "herd_life")
  maybe(c, 60, "recall_job")
end)

plot("storm", function(c)
  local seq = lexicon.weathers.neg
  c.env.weather = pick(c, seq)
  object(c)
  feel(c, c.A, "neg")
  begin(c)
  meet(c)
  say(c, "storm")
  maybe(c, 50, "storm")
  say_all(c, "inside", "inside")
  mood(c, 30)
  propose(c)
end)

plot("plan", function(c)
  begin(c)
  weather(c)
  meet(c)
  maybe(c, 50, "plan_talk")
  mood(c, 40)
  propose(c)
  maybe(c, 60, "interlude")
  say(c, "recall_job")
end)

plot("dinner", function(c)
  c.K = many(lexicon.guests)
  split_count(c, 12)
  begin(c)
  meet(c)
  say_all(c, "party", "feast")
  say_all(c, "guests", "guests_some", "guests_left")
  feel(c, c.A, "pos")
  mood(c, 30)
  say(c, "feast")
end)

plot("letter", function(c)
  object(c)
  c.B.loc = c.S
  begin(c)
  weather(c)
  say_all(c, "letter", "letter_text")
  maybe(c, 60, "letter_text")
  say(c, "letter_read")
  mood(c, 40)
  maybe(c, 60, "interlude")
  say(c, "letter_answer")
end)

plot("journey", function(c)
  object(c, world.portable)
  begin(c)
  weather(c)
  say(c, "have")
  maybe(c, 50, "describe")
  say(c, draw(c, 2) == 0 and "go" or "bring")
  at(c.R, c.A, c.O)
  say(c, "interlude")
  mood(c, 40)
  say_all(c, "recall_place", "recall_colour")
end)

-- --- the whole story

local function reset(c, k0, k1)
  c.k0, c.k1, c.counter = k0, k1, 0
  c.n, c.words, c.sent, c.position = 0, 0, 1, 0
  c.cap, c.glue, c.article = true, true, 0
  c.subject, c.subject_number, c.subject_person = nil, "sg", 3
  c.used = {}
end

--- Tell one story into `c.parts[1 .. c.n]`.
-- @tparam table c state, reusable between stories: `parts` (a table) and, for annotation, `record` (an empty
--   table)
-- @tparam integer k0 first key word (saelua.storyworld.rng)
-- @tparam integer k1 second key word
function plots.tell(c, k0, k1)
  reset(c, k0, k1)
  c.tense = draw(c, 100) < 68 and "past" or "present"
  world.make(c)
  local p = pick(c, plots.list)
  c.plot = p.name
  p.tell(c)
  while c.words < 66 do say(c, "interlude") end
  local finish = "finish_" .. c.A.mood.polarity
  if c.words < 125 then say(c, draw(c, 100) < 55 and finish or "finish") end
end

return plots
