--- The small world of a story: who and what there is, made afresh for each document from its random stream.
--
-- An entity is one table that lives as long as its story: what it is (`kind`, `noun` or `name`, `colour`,
-- ...), what is true of it now (`owner`, `loc`, `mood`; the plots change these) and when it was last
-- mentioned (the renderer's).
-- @module saelua.storyworld.world

local lexicon = require "saelua.storyworld.lexicon"
local draw = require("saelua.storyworld.render").draw

require("jit").off(true, true) -- as in saelua.storyworld.render, and for its reason

local world = {}

function world.pick(c, list) return list[draw(c, #list) + 1] end

function world.feel(c, person, polarity) person.mood = world.pick(c, lexicon.moods[polarity]) end

function world.own(thing, person) thing.owner, thing.loc = person, nil end

-- X: who has it; Y: who does not (slots of questions about the owner).
function world.holder(c, x, y) c.X, c.Y = x, y end

local function person(c, other)
  local sex = draw(c, 2) == 0 and "female" or "male"
  local e = { kind = "person", class = "name", number = "sg", sex = sex, last = -9 }
  e.pronoun = "3sg" .. sex
  repeat e.name = world.pick(c, lexicon.names[sex]) until not other or other.name ~= e.name
  repeat e.job = world.pick(c, lexicon.jobs) until not other or other.job ~= e.job
  e.label = e.name.text
  return e
end

function world.place(c, ...)
  local p
  repeat
    p = world.pick(c, lexicon.places)
    local clash = false
    for i = 1, select("#", ...) do clash = clash or select(i, ...).place == p end
  until not clash
  return { kind = "place", class = "place", number = "sg", place = p, label = p.noun.text, last = -9 }
end

function world.thing(c, entry, palette)
  local e = { kind = entry.kind, class = entry.class, number = "sg", noun = entry,
    label = entry.sg.text, last = -9 }
  e.colour = world.pick(c, palette or lexicon.colours)
  e.size = world.pick(c, lexicon.sizes)
  if #entry.materials > 0 then e.material = world.pick(c, entry.materials) end
  return e
end

local function with_flag(list, flag)
  local out = {}
  for _, t in ipairs(list) do if t.flags:find(flag, 1, true) then out[#out + 1] = t end end
  return out
end
local function with_class(list, class)
  local out = {}
  for _, t in ipairs(list) do if t.class == class then out[#out + 1] = t end end
  return out
end

world.portable = with_flag(lexicon.objects, "p")
world.fragile = with_flag(lexicon.objects, "r")
world.paintable = with_flag(lexicon.objects, "w")
world.herds = with_flag(lexicon.animals, "h")
world.pets = with_flag(lexicon.animals, "t")
world.foods = with_class(lexicon.countables, "food")
world.open_air = with_class(lexicon.places, "out")

function world.many(entry)
  return { kind = entry.kind, class = entry.class, number = "pl", noun = entry,
    label = entry.sg.text, last = -9 }
end

function world.object(c, list)
  local o = world.thing(c, world.pick(c, list or lexicon.objects))
  repeat o.wrong = world.pick(c, lexicon.colours) until o.wrong ~= o.colour
  world.own(o, c.A)
  c.O = o
end

function world.at(place_entity, ...)
  for i = 1, select("#", ...) do select(i, ...).loc = place_entity end
end

-- What a former story may have left in a reused state.
local story_slots = { "O", "Q", "M", "K", "H", "C", "G", "L", "it", "speaker", "addressee" }

function world.make(c)
  c.A = person(c)
  c.B = person(c, c.A)
  c.W = { kind = "person", class = "pair", number = "pl", label = c.A.label .. "+" .. c.B.label, last = -9 }
  repeat c.P = world.place(c) until c.P.place.class ~= "room"
  c.R = world.place(c, c.P)
  c.S = world.place(c, c.P, c.R)
  c.D = world.thing(c, world.pick(c, lexicon.containers))
  world.at(c.P, c.A, c.B)
  for i = 1, #story_slots do c[story_slots[i]] = nil end
  world.holder(c, c.A, c.B)
  local fine = draw(c, 100) < 60 and "pos" or "neg"
  c.env = { weather = world.pick(c, lexicon.weathers[fine]), part = lexicon.times[draw(c, 3) + 1],
    day = world.pick(c, lexicon.weekdays), season = world.pick(c, lexicon.seasons) }
  repeat c.env.next = world.pick(c, lexicon.weekdays) until c.env.next ~= c.env.day
  c.num = {}
  world.feel(c, c.A, fine)
  world.feel(c, c.B, fine)
end

return world
