--- The sentences of storyworld, by purpose. Data only; saelua.storyworld.render says them.
--
-- A template is a line of space-separated items:
--
--     boat  the  not    a literal word of the lexicon
--     A B X Y W         a person (W: A and B together): name, pronoun or occupation, as the discourse allows.
--                       A/o object, A/r recipient, A/w companion, A/t topic, else subject; A's = owner form;
--                       A.name A.the A.job A.mood fix the form
--     O Q G L D M K H C a thing or animal: "the boat", "the red boat", "it". O.a introduces it in full; .the
--                       .full .my .it .n .c .z .m .pl fix the form (.c .z .m: colour, size, material alone;
--                       .wrong: another colour); O/s makes it the subject
--     K#left  #left     a count with and without its noun
--     P R S  P.at       a place, bare or with its own preposition
--     take:v  take:n    a verb in the story's tense, agreeing with the subject; n = negated. t p f = present,
--                       past, future (tn, pn, fn: negated); b = bare;
--                       be:v:O agrees with slot O, be:v:pl is plural
--     "A>B ... "        speech by A to B (I, you, my follow)
--     [x y|z|]          one of several, maybe nothing
--     words: @weather @part (of the day) @day @next (another day) @season
--
-- First item: + - (sentiment), ~A (the mood of A), ~w (of the weather).
--
-- This file has what any story may use, saelua.storyworld.scenes what belongs to one plot.
-- @module saelua.storyworld.templates

return {
  open = {
    "there be:v a A.job named A.name . A live:v near P .", "A.name be:v a [young|old|good|] A.job .",
    "A.name , the A.job , live:v near P .",
    "A.name be:v a A.job who live:v:A in a [small|old|] house near P .",
    "+ A.name be:v a A.job , and everyone like:v A/o .",
    "~w it be:v a @weather @part , and A.name be:v P.at . A be:v a A.job .",
    "A.name , a [young|old] A.job , go:v to P every @day .", "on @day , A.name be:v P.at . A be:v a A.job .",
    "one @part in @season , A.name walk:v to P . A be:v a A.job .",
    "the A.job be:v P.at . A's name be:v A.name .",
    "the name of the A.job be:v A.name . A live:v in a house near P .",
    "in @season , A.name the A.job often visit:v P .", "this be:t the story of A.name . A be:v a A.job .",
  },
  weather_pos = {
    "+ the sun shine:v and the sky be:v blue .", "+ it be:v a @weather @part .",
    "+ the @part be:v @weather and beautiful .", "+ the wind be:v warm .",
    "+ there be:v:pl no clouds in the sky .", "+ what a [nice|beautiful|wonderful] @part !",
  },
  weather_neg = {
    "- it be:v a @weather @part .", "- the @part be:v @weather , and the road be:v empty .",
    "- the sky be:v gray and dark .", "- there be:v no sun that @part .",
    "- a [heavy|dark] rain fall:v over the village .", "- the wind blow:v very loudly .",
    "- the sun shine:n that @part .",
  },
  mood = {
    "~A A be:v A.mood .", "~A A feel:v [very|really] A.mood .", "~A that @part A be:v [very|quite] A.mood .",
    "~A A be:v A.mood , and everyone know:v it .", "~A [now|then] A feel:v A.mood .",
    "~A A be:v A.mood all @part .",
  },
  job_captain = {
    "A know:v the sea [very|] well .", "A have:v a big ship and many friends at sea .",
  },
  job_baker = {
    "A bake:v bread every morning .", "A's bread be:v always hot and good .",
  },
  job_farmer = {
    "A grow:v wheat and vegetables .", "A wake:v early and work:v all day .",
  },
  job_doctor = {
    "A help:v sick people .", "A visit:v the sick children of the village .",
  },
  job_teacher = {
    "A teach:v the children to read:b and write:b .", "A read:v stories to the children .",
  },
  job_painter = {
    "A make:v pictures of houses and trees .", "A paint:v the sea and the sky .",
  },
  job_sailor = {
    "A sail:v over the sea on a big ship .", "A sing:v old songs about the sea .",
  },
  job_gardener = {
    "A grow:v trees and beautiful flowers .", "A give:v water to the trees every @part .",
  },
  job_carpenter = {
    "A make:v doors and chairs from wood .", "A build:v houses from wood .",
  },
  job_musician = {
    "A play:v music for the people of the village .", "A write:v new songs every week .",
  },
  job_nurse = {
    "A help:v the doctor with sick people .", "A work:v at night and sleep:v in the day .",
  },
  job_cook = {
    "A cook:v hot soup for many people .", "A make:v dinner for the guests .",
  },
  job_tailor = {
    "A sew:v clothes for the whole village .", "A mend:v old clothes .",
  },
  job_fisher = {
    "A catch:v fish with nets .", "A sit:v near the water and wait:v quietly .",
  },
  job_miller = {
    "A make:v wheat ready for the baker .", "A carry:v wheat to the village .",
  },
  job_hunter = {
    "A know:v every animal of the wood .", "A follow:v animals through the grass .",
  },
  meet = {
    "B.name , [a|the] B.job , be:v P.at too .", "there A meet:v B.name , the B.job .",
    "then B.name come:v to P . B be:v a B.job .",
    "A have:v a [good|dear|] friend named B.name . B be:v a B.job .",
    "A see:v B.name there . B be:v a [young|old|] B.job .", "a B.job named B.name live:v:B there too .",
    "B.name , the B.job , [greet:v|call:v to] A.name/o .", "soon A meet:v a B.job . B's name be:v B.name .",
  },
  greet = {
    '+ "A>B hello , B.name/t ! " A say:v .', "+ A smile:v and greet:v B/o .", "+ W be:v old friends .",
    "+ W be:v good friends and often work:v together .", '+ "B>A good @part , A.name/t , " say:v:B B.name .',
    "+ B be:v glad to see:b A/o .",
    '+ "B>A how be:t:A A , A.name/t ? " B ask:v . "A>B A be:t fine , " A answer:v .',
    "W sit:v under a tree and wait:v .", "W know:v each other well .",
  },
  have = {
    "A have:v O.a .", "A have:v O.a , and A like:v O.it very much .", "A bring:v O.a home .", "A own:v O.a .",
    "+ A be:v very proud of O.a .", "A's father give:p A/r O.a [last year|] .",
    "near the door of A's house there be:v:O O.a .", "A have:v something new : O.a .",
    "there be:v:O O.a in A's house . it belong:v to A/r .", "A love:v one thing : O.a .",
    "A make:v O.a with A's own hands .",
  },
  describe = {
    "O/s be:v O.z .", "O/s be:v not new .", "O/s be:v made of good things .", "O.the/s be:v O.c .",
    "+ O/s be:v [clean|useful|beautiful] and A keep:v O.it safe .", "A.the clean:v O every @day .",
    "A never leave:v O at home .", "+ A love:v the O.c O.n very much .",
    "- O/s be:v [old|dirty] , but A like:v O.it .", "O.my/s be:v O.z and O.c .",
    "everyone know:v the O.c O.n .", "the color of O.the be:v O.c .", "A often look:v at O .",
    "A think:v about O all day .",
  },
  thank = {
    '+ "X>Y X thank:t Y/o very much ! " say:v:X X.name .', "+ X.name thank:v Y.name/o .",
    "+ X be:v happy and thank:v Y/o .", '+ "X>Y Y be:t very kind , " X say:v .', "+ X smile:v and laugh:v .",
    '+ "X>Y what a good friend ! " X say:v .', "+ X thank:v Y/o again and again .",
    "+ X never forget:v Y's help .", '+ "X>Y X be:t so glad , " X say:v to Y/r .',
  },
  interlude = {
    "A work:v hard that day .", "the road to P be:v long .", "many people come:v:pl to P that day .",
    "the room be:v quiet .", "A drink:v water and eat:v some bread .",
    "there be:v a [young|old] tree near P .", "A hear:v music from P .",
    "A look:v at the clouds and think:v .", "some children play:v:pl near P .", "A be:v busy all @part .",
    "A wait:v for a hour .", "nobody say:v a word .", "A sing:v a short song .", "A know:v P very well .",
    "the house of A.name be:v near P .", "it be:v late , but A sleep:n .", "A wear:v A's old clothes .",
    "what do:v:A A think:b ? nobody know:v .", "A always remember:v that @part .",
    "a old woman smile:v:sg at A/o .", "a boy and a girl run:v:pl over the road .",
    "A close:v the window and open:v the door .",
  },
  recall_colour = {
    "what color be:v:O O.the ? O.it/s be:v O.c .", "be:v:O O.the O.c ? yes , the color of O.the be:v O.c .",
    "be:v:O O.the O.wrong ? no , O.it/s be:v O.c .", "\"B>A A's O.n be:t O.c , \" B say:v .",
    "the O.c O.n be:v O.z .", "A see:v many O.pl , but only one be:v O.c .",
  },
  recall_owner = {
    "who have:v O.the now ? X.name have:v O.it .", "who have:v O.the ? not Y.name/t , but X.name/t .",
    "O.the/s belong:v to X.name/r .", "O.the/s be:v with X.name/w , the X.job .",
    "do:v:Y Y.name have:b O.the ? no , X.name have:v O.it .",
  },
  recall_job = {
    "what be:v:sg A's work ? A be:v a A.job .", "who be:v the A.job ? it be:v A.name/t .",
    '"B>A be:t:A A a A.job ? " B ask:v . "A>B yes , A be:t a A.job , " A say:v .',
    "A.name be:v the A.job , and B.name be:v the B.job .",
    '"A>B A be:t a A.job and B be:t a B.job , " A say:v .',
  },
  recall_place = {
    "where be:v:A A.name ? A be:v R.at .", "A be:n P.at . A be:v R.at .",
    '"B>A where be:t:A A ? " B call:v . "A>B A be:t R.at ! " A answer:v .',
  },
  finish_pos = {
    "+ at night A sleep:v well .", "+ it be:v a good day .", "+ that @part A be:v A.mood .",
    "+ A go:v home happily .", "+ W laugh:v and go:v home .", "+ A.name and B.name stay:v:W friends .",
    "+ A never forget:v that day .", '+ "A>B what a wonderful day ! " A say:v .',
    "+ so the story end:v well .", "+ in the evening A be:v A.mood and A smile:v .",
  },
  finish_neg = {
    "- at night A can:n sleep:b .", "- it be:v a bad day for A/r .", "- A go:v home sadly .",
    "- A be:v A.mood for many days .", "- A sit:v alone in the dark and cry:v .",
    '- "A>B A be:t so A.mood , " A say:v .', "- nobody smile:v that night .",
    "- in the evening A be:v still A.mood .",
  },
  finish = {
    "then A go:v home .", "soon it be:v night , and everyone sleep:v .", "at night the moon shine:v over P .",
    "the next day W meet:v again .", "A tell:v the story to A's family .",
    "A's sister hear:v the whole story later .", "after supper A go:v to bed .", "that be:v the end .",
  },
}
