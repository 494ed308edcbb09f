"""Plain words for the probe's texts, written for this project: hobbies, subjects, key words, words to count.

As in `names`, even places of a list are for fine-tuning and odd places for the evaluation. Design note: the words are
common, so that each is one token of a small tokenizer. Made-up strings come from `question.made_up`.
"""

HOBBIES = tuple(
    """
    archery astronomy baking badminton ballet bowling boxing calligraphy camping canoeing carpentry chess climbing
    collage cooking croquet crochet cycling dancing darts diving drumming embroidery falconry fencing fishing
    gardening golf hiking hockey jogging juggling karate kayaking knitting lacework marbling meditation model-making
    mosaic needlework orienteering origami painting parachuting philately photography pottery puppetry quilting
    reading riding rowing rugby running sailing sculpting sewing singing skating sketching skiing sledding snorkeling
    surfing swimming tailoring tennis volleyball walking weaving whittling windsurfing woodcarving wrestling writing
    yodelling yoga
    """.split()
)
MAJORS = tuple(
    """
    acoustics aesthetics algebra anatomy anthropology archaeology architecture arithmetic biochemistry biology botany
    cartography chemistry choreography civics climatology cryptography criminology design didactics drama dentistry
    ecology economics electronics engineering entomology epidemiology ethics ethnology finance forestry genetics
    geography geology geometry geophysics glaciology grammar history horticulture hydrology immunology informatics
    journalism law linguistics literature logic logistics marketing mathematics mechanics medicine metallurgy
    meteorology mineralogy music mythology neurology nursing nutrition oceanography optics pedagogy pharmacy philology
    philosophy phonetics physics physiology poetics politics psychology rhetoric robotics sociology statistics surgery
    theology topology toxicology virology zoology
    """.split()
)
ADJECTIVES = tuple(
    """
    able amber ancient angry awkward bare bitter blank blunt bold bony brave brief bright brisk broad broken calm
    careful cheap chilly clean clever cloudy clumsy coarse cold cosy crisp crooked curious curly damp dark deaf dear
    deep dense dim dizzy double dry dull dusty eager early easy elder empty even faint fair false fancy fast fat
    feeble fierce final firm flat fond frail free fresh frosty full funny gentle giant glad golden grand grave grey
    happy hard harsh hasty heavy hollow honest huge humble hungry icy idle inner jolly keen kind large late lazy lean
    light little lively lonely long loose loud loyal lucky mellow mild misty modest narrow neat noble odd old orange
    pale patient plain polite proud quick quiet rapid rare raw rich ripe rough round rusty sharp shy silent silver
    simple sleepy slim slow small smooth sober soft solid sour steep stiff strange strong sturdy sudden sweet swift
    tall tame tender thick thin tidy tiny tired tough upper vague vast violet warm weak wide wild wise wooden yellow
    young
    """.split()
)
NOUNS = tuple(
    """
    acorn anchor apple apron arrow badger bakery balcony barn barrel basket beacon bell bench bicycle blanket boat
    bottle bowl bridge broom brush bucket button cabin camel candle canyon cart castle cellar chain chair cherry
    chimney clock coat comb compass copper corner cradle crane cup curtain desk donkey door drawer drum eagle engine
    falcon farm feather fence ferry field flag flute forest fork fountain fox garden gate glove goat hammer harbor
    harp hat hedge helmet hill horse hut island jacket jar kettle key kite knot ladder lake lamp lantern leaf lemon
    letter lighthouse lizard loaf lock map market mast meadow melon mill mirror moon mountain nail needle nest oak
    oar orchard otter oven owl paddle palace pan paper parrot path pear pebble pencil pier pillow pin pipe planet
    plate plum pond puddle pump rabbit raft rail raven ribbon ring river road robin roof rope rose saddle sail salmon
    scarf shed shell ship shovel sledge spade sparrow spoon square stable stair stone storm stove street summit swan
    table tent tiger tower trumpet tunnel turtle valley violin wagon wall well whale wheel whistle willow window
    """.split()
)
VERB_WORDS = tuple(
    "watches carries follows finds paints guards repairs hides lifts borrows washes draws sells meets".split()
)
FORMS = tuple("verse riddle letter speech legend diary prayer sermon recipe proverb ballad fable".split())
COUNTED_WORDS = tuple(
    """
    above across actor advice after again agree air along also among answer area arm art aunt autumn baby back bag
    ball bank base bath beach bean bear bed before begin behind bird birth black blood blue board body bone book born
    bottom box boy branch bread break brother brown build business butter buy cake call camera captain car card care
    case cat catch cause chance change cheese chief child choice church circle city class clay cliff cloud club coal
    coast color common cook corn cost cotton count country course cousin cover cow cream crop cross crowd cry danger
    date daughter day deal degree deliver desert dinner dirt doctor dog dollar doubt dream dress drink drive duck dust
    ear earth east edge egg enemy evening event exam eye face fact factory fall family father fear fever figure film
    finger fire fish floor flour flower food foot form friend frog front fruit game gas gift girl glass goal gold
    grain grass green group guard guest guide gun hair half hall hand head heart heat height help hen history hole
    holiday home honey hope hotel hour house idea ink insect iron job joke judge juice jump juniper king kiss kitchen
    knee knife lady land language laugh lawyer lead leather leg lesson level library lip list luck lunch machine mail
    """.split()
)
