"""Closed lists of English words that `aicl.verbs` reads captions with; a dictionary has their forms, not their use."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


BE = _words("be is are was were am been being")
HAVE = _words("have has had having")
DO = _words("do does did")
MODALS = _words("can could may might must shall should will would")
AUXILIARIES = _words("be have") | MODALS  # base forms that are never actions
NEGATIONS = _words("not never hardly neither nor")
NOBODY = _words("nobody none nothing")
SINGULAR_DETERMINERS = _words("a an one another each every this that no any")
DETERMINERS = SINGULAR_DETERMINERS | _words(
    "the these those his her its their our my your some all both several many few old new 's"
)
PLURAL_PRONOUNS = _words("they we you i")
PRONOUNS = PLURAL_PRONOUNS | _words("he she it who which that someone somebody everyone everybody anybody nobody")
OBJECT_PRONOUNS = _words("him her it them me us himself herself itself themselves each")
PREPOSITIONS = _words(
    """of in on at with without for from to by near under behind over through across into along up down around towards
    toward past onto off out against upon after before beside besides between above below inside outside beneath
    underneath during among amid beyond within about like via next"""
)
CONJUNCTIONS = _words("and or but then while when as because so if where until since & +")
ADVERBS = NEGATIONS | _words(
    """also often always again together outdoors indoors outside alone now still just very too even almost once already
    really"""
)
PUNCTUATION = frozenset(".,;:!?()/-")
# Before one of these a form in doubt is a verb: they say whither, or begin an object.
PREDICATE = (
    DETERMINERS
    | OBJECT_PRONOUNS
    | _words(
        """over through across into along up down around towards toward away past onto off out against upon slowly
        quickly happily together forward forwards backwards upwards downwards"""
    )
)
# What no verb rule is asked about.
FUNCTION_WORDS = (
    PRONOUNS | DETERMINERS | PREPOSITIONS | CONJUNCTIONS | _words("back close front people video footage slow fast")
)
# Doers: people, animals, and what moves by itself.
SINGULAR_SUBJECTS = _words(
    """man woman boy girl person child kid baby toddler guy lady gentleman boyfriend girlfriend husband human
    wife male female mother father mom mum dad son daughter brother sister grandmother grandfather grandma grandpa
    granddaughter grandson uncle aunt parent couple family friend team crowd lover newlywed infant
    group teenager teen adult student pupil teacher doctor nurse dentist surgeon scientist engineer worker builder
    farmer fisherman hunter chef cook waiter waitress barista baker bartender driver pilot cyclist biker rider runner
    jogger swimmer diver surfer skier snowboarder skater skateboarder dancer ballerina singer musician guitarist pianist
    drummer violinist dj band orchestra performer artist painter writer photographer cameraman model actor actress
    athlete gymnast sportsman sportswoman player footballer boxer fighter wrestler golfer climber hiker tourist traveler
    traveller businessman businesswoman manager employee customer client instructor coach trainer
    seller barber hairdresser mechanic welder carpenter potter blacksmith tailor soldier officer policeman policewoman
    firefighter astronaut bride groom monk priest king queen prince princess clown magician juggler robot superhero hero
    pedestrian passenger patient shopper freelancer programmer influencer blogger vlogger student pensioner
    dog puppy cat kitten horse pony cow bull calf sheep lamb goat pig rabbit hare squirrel mouse rat hamster monkey ape
    gorilla bear panda lion tiger leopard cheetah elephant giraffe zebra deer fox wolf camel kangaroo bird eagle hawk
    owl duck goose swan chicken rooster hen pigeon seagull gull parrot penguin peacock flamingo fish shark dolphin
    whale turtle tortoise frog snake lizard crocodile spider ant bee butterfly caterpillar snail crab jellyfish animal
    sloth alpaca llama otter seal walrus koala hedgehog raccoon beaver bat worm insect beetle dragonfly mosquito fly
    platypus iguana chameleon octopus squid starfish dinosaur dragon ghost zombie monster
    car truck bus train boat ship airplane plane aircraft helicopter drone camera motorcycle motorbike bicycle tram
    yacht ferry balloon rocket tractor excavator crane"""
)
PLURAL_SUBJECTS = _words(
    """people men women children kids boys girls persons guys ladies friends babies mice geese sheep fish police
    fishermen businessmen policemen sportsmen youngsters teenagers both humans wolves calves cattle"""
)
BODY = _words("hands legs eyes lips fingers arms shoulders faces hips toes heads backs palms nails ears feet mouths")
# Third-person forms that the dictionary also has as plurals, but captions hardly ever do.
CLEAR_THIRD = _words(
    """stands takes makes goes gets holds keeps puts gives tries talks eats sleeps throws catches sits brings rests
    cheers grazes shines glows floats spins rotates appears crawls swims flows hangs"""
)
# Verbs that are the likelier reading of a form in doubt after a doer some words away, or in a row of verbs.
COMMON = _words(
    """jump run walk look stop turn swim fly fall sit stand sleep eat drink throw catch kick hit pick pull push lift
    carry hold climb dance sing play talk speak laugh smile cry cheer clap wave whisper giggle yawn stretch kiss hug
    shout scream work read write draw paint cook bake cut chop stir pour wash clean sweep mop drive ride row paddle ski
    skate surf dive slide roll spin swing bounce bend kneel crawl creep hide float land taste smell touch watch point
    nod bow shake shave comb brush dress smoke wink blink breathe cough sneeze stumble trip rest wait march hop skip
    leap sprint race fight wrestle box punch feed pet stroke hunt fish dig plant build fix repair check open close
    enter leave arrive pass cross follow chase escape greet meet pray chat argue rehearse perform practise practice
    train exercise relax meditate"""
)
# Gerund-like words that name or link things, whatever stands around them.
THINGS = _words(
    """morning evening ceiling ring king wing string spring thing anything something nothing everything during being
    having ping bing duckling sibling dumpling earring pudding sting viking herring background wellbeing outing
    offspring darling railing awning interesting amazing stunning charming exciting relaxing outstanding including
    according beijing upcoming ongoing depending regarding concerning stocking wedding existing
    rendering bar bars"""
)
# Gerunds that are the action only where a doer or a form of "be" stands before, or an object behind.
MOSTLY_THINGS = _words(
    """building clothing lighting feeling living landing greeting surrounding following missing remaining timing
    painting wiring flooring packaging housing parking meeting training setting opening drawing crossing reading
    engineering marketing advertising recording beginning ending printing"""
)
# Past forms that say how things are rather than what happens.
STATES = _words(
    """dressed covered surrounded isolated filmed blurred decorated located based used animated shot made tired old
    seated lit set filled called named known related detailed abandoned broken closed frozen colored coloured cooked
    dried fried grilled baked roasted sliced chopped mixed fresh cropped rendered generated aged bearded focused
    defocused unfocused excited concerned bored worried confused married retired ruined painted parked left found
    born lost forested gloved tattooed served stacked raised crossed"""
)
# What a gerund before it qualifies: a thing made for the action, not the action.
COMPOUND_HEADS = _words(
    """pool suit suits shoes shoe machine machines table tables mall lot pan rink board rod rods gloves bag bags stick
    sticks room rooms center centre gear equipment track club class classes lesson lessons competition course line
    lines season school gown studio area hall wheel goggles chair chairs trunks costume tool tools boots light lights
    plant station process site cart field range ground grounds tower world city strip show boat boats saucer gum car
    cars pole poles"""
)
COMPOUNDS = frozenset(
    {("running", "water"), ("drinking", "fountain"), ("dining", "set"), ("fishing", "net"), ("sewing", "kit")}
)
# Gerunds that describe the thing behind them, since they take no object.
INTRANSITIVE = _words("moving flying falling running glowing blooming rotating rising burning growing shining floating")
MOTIONS = _words("go walk run come return drive travel move fly ride head lead hurry climb")
READY = _words("about going ready able how willing eager")
OF_VERBS = _words("think dream speak consist")  # gerunds whose object begins with "of"
GENERIC = _words("exercise exercises workout workouts pose poses practice practices training routine routines")
