"""Facts of the closed world: tables that the corpus asks about.

Every row is a real-world fact that does not change from year to year. Tables
are plain text, one row per line, fields parted by `|` (or pairs parted by `,`
where a row is two words), so that a reader can check them at a glance.
"""


def rows(text: str) -> list[tuple[str, ...]]:
    """Rows of a table: one per line, fields parted by `|`, outer blanks dropped."""
    return [tuple(f.strip() for f in line.split("|")) for line in text.strip().splitlines()]


def pairs(text: str) -> list[tuple[str, str]]:
    """Pairs `a:b` parted by commas."""
    out = []
    for piece in text.replace("\n", " ").split(","):
        if piece.strip():
            a, b = piece.split(":")
            out.append((a.strip(), b.strip()))
    return out


# country | capital | continent | main language
COUNTRIES = rows("""
France|Paris|Europe|French
Germany|Berlin|Europe|German
Spain|Madrid|Europe|Spanish
Italy|Rome|Europe|Italian
Portugal|Lisbon|Europe|Portuguese
Greece|Athens|Europe|Greek
Poland|Warsaw|Europe|Polish
Austria|Vienna|Europe|German
Hungary|Budapest|Europe|Hungarian
Sweden|Stockholm|Europe|Swedish
Norway|Oslo|Europe|Norwegian
Denmark|Copenhagen|Europe|Danish
Finland|Helsinki|Europe|Finnish
Iceland|Reykjavik|Europe|Icelandic
Ireland|Dublin|Europe|English
Romania|Bucharest|Europe|Romanian
Bulgaria|Sofia|Europe|Bulgarian
Croatia|Zagreb|Europe|Croatian
Serbia|Belgrade|Europe|Serbian
Ukraine|Kyiv|Europe|Ukrainian
Estonia|Tallinn|Europe|Estonian
Latvia|Riga|Europe|Latvian
Lithuania|Vilnius|Europe|Lithuanian
Albania|Tirana|Europe|Albanian
Slovakia|Bratislava|Europe|Slovak
Slovenia|Ljubljana|Europe|Slovene
Japan|Tokyo|Asia|Japanese
China|Beijing|Asia|Chinese
India|New Delhi|Asia|Hindi
Thailand|Bangkok|Asia|Thai
Vietnam|Hanoi|Asia|Vietnamese
Mongolia|Ulaanbaatar|Asia|Mongolian
Nepal|Kathmandu|Asia|Nepali
Iran|Tehran|Asia|Persian
Iraq|Baghdad|Asia|Arabic
Jordan|Amman|Asia|Arabic
Lebanon|Beirut|Asia|Arabic
Cambodia|Phnom Penh|Asia|Khmer
Laos|Vientiane|Asia|Lao
Bangladesh|Dhaka|Asia|Bengali
Qatar|Doha|Asia|Arabic
Oman|Muscat|Asia|Arabic
Egypt|Cairo|Africa|Arabic
Morocco|Rabat|Africa|Arabic
Kenya|Nairobi|Africa|Swahili
Ethiopia|Addis Ababa|Africa|Amharic
Ghana|Accra|Africa|English
Senegal|Dakar|Africa|French
Algeria|Algiers|Africa|Arabic
Tunisia|Tunis|Africa|Arabic
Libya|Tripoli|Africa|Arabic
Angola|Luanda|Africa|Portuguese
Mozambique|Maputo|Africa|Portuguese
Zambia|Lusaka|Africa|English
Zimbabwe|Harare|Africa|English
Uganda|Kampala|Africa|English
Madagascar|Antananarivo|Africa|Malagasy
Namibia|Windhoek|Africa|English
Mexico|Mexico City|North America|Spanish
Canada|Ottawa|North America|English
Cuba|Havana|North America|Spanish
Jamaica|Kingston|North America|English
Panama|Panama City|North America|Spanish
Costa Rica|San Jose|North America|Spanish
Guatemala|Guatemala City|North America|Spanish
Honduras|Tegucigalpa|North America|Spanish
Brazil|Brasilia|South America|Portuguese
Argentina|Buenos Aires|South America|Spanish
Chile|Santiago|South America|Spanish
Peru|Lima|South America|Spanish
Colombia|Bogota|South America|Spanish
Venezuela|Caracas|South America|Spanish
Ecuador|Quito|South America|Spanish
Uruguay|Montevideo|South America|Spanish
Paraguay|Asuncion|South America|Spanish
Australia|Canberra|Oceania|English
New Zealand|Wellington|Oceania|English
Fiji|Suva|Oceania|English
United Kingdom|London|Europe|English
Netherlands|Amsterdam|Europe|Dutch
Russia|Moscow|Europe|Russian
South Korea|Seoul|Asia|Korean
Turkey|Ankara|Asia|Turkish
Philippines|Manila|Asia|Filipino
United States|Washington|North America|English
""")

ELEMENTS = pairs("""hydrogen:H, helium:He, lithium:Li, carbon:C, nitrogen:N, oxygen:O, fluorine:F, neon:Ne, sodium:Na,
magnesium:Mg, aluminium:Al, silicon:Si, phosphorus:P, sulfur:S, chlorine:Cl, argon:Ar, potassium:K, calcium:Ca,
titanium:Ti, chromium:Cr, manganese:Mn, iron:Fe, cobalt:Co, nickel:Ni, copper:Cu, zinc:Zn, silver:Ag, tin:Sn,
iodine:I, platinum:Pt, gold:Au, mercury:Hg, lead:Pb, uranium:U""")

OPPOSITES = pairs("""hot:cold, big:small, tall:short, fast:slow, old:young, happy:sad, light:dark, hard:soft, wet:dry,
full:empty, open:closed, rich:poor, strong:weak, early:late, clean:dirty, high:low, wide:narrow, thick:thin,
loud:quiet, up:down, left:right, day:night, summer:winter, north:south, east:west, black:white, first:last,
good:bad, true:false, easy:difficult, near:far, inside:outside, above:below, before:after, buy:sell, win:lose,
push:pull, begin:end, love:hate, give:take, friend:enemy, cheap:expensive, safe:dangerous, brave:afraid,
heavy:light, deep:shallow, smooth:rough, sweet:sour, awake:asleep, alive:dead, always:never, remember:forget""")

PLURALS = pairs("""mouse:mice, child:children, foot:feet, tooth:teeth, goose:geese, man:men, woman:women, ox:oxen,
person:people, leaf:leaves, knife:knives, wolf:wolves, wife:wives, life:lives, half:halves, city:cities, baby:babies,
box:boxes, bus:buses, dish:dishes, church:churches, fox:foxes, tomato:tomatoes, potato:potatoes, hero:heroes,
sheep:sheep, deer:deer, fish:fish, cat:cats, dog:dogs, house:houses, book:books, tree:trees, key:keys, toy:toys,
story:stories, country:countries, glass:glasses, watch:watches, shelf:shelves""")

PAST = pairs("""go:went, eat:ate, see:saw, run:ran, take:took, give:gave, come:came, make:made, write:wrote, drink:drank,
sing:sang, swim:swam, begin:began, fly:flew, know:knew, grow:grew, throw:threw, break:broke, speak:spoke, steal:stole,
choose:chose, drive:drove, ride:rode, fall:fell, find:found, buy:bought, bring:brought, think:thought, catch:caught,
teach:taught, sleep:slept, keep:kept, leave:left, feel:felt, build:built, send:sent, lose:lost, sell:sold, tell:told,
walk:walked, play:played, jump:jumped, help:helped, look:looked""")

# English | Spanish | French | German
TRANSLATIONS = rows("""
water|agua|eau|Wasser
bread|pan|pain|Brot
house|casa|maison|Haus
dog|perro|chien|Hund
cat|gato|chat|Katze
book|libro|livre|Buch
sun|sol|soleil|Sonne
moon|luna|lune|Mond
friend|amigo|ami|Freund
tree|arbol|arbre|Baum
milk|leche|lait|Milch
apple|manzana|pomme|Apfel
red|rojo|rouge|rot
green|verde|vert|grün
black|negro|noir|schwarz
white|blanco|blanc|weiß
one|uno|un|eins
two|dos|deux|zwei
three|tres|trois|drei
hello|hola|bonjour|hallo
thank you|gracias|merci|danke
yes|si|oui|ja
no|no|non|nein
night|noche|nuit|Nacht
day|dia|jour|Tag
mother|madre|mère|Mutter
father|padre|père|Vater
fish|pez|poisson|Fisch
bird|pajaro|oiseau|Vogel
school|escuela|école|Schule
""")

# animal | young | sound verb | legs | class
ANIMALS = rows("""
dog|puppy|barks|4|mammal
cat|kitten|meows|4|mammal
cow|calf|moos|4|mammal
horse|foal|neighs|4|mammal
sheep|lamb|bleats|4|mammal
pig|piglet|oinks|4|mammal
duck|duckling|quacks|2|bird
chicken|chick|clucks|2|bird
lion|cub|roars|4|mammal
goat|kid|bleats|4|mammal
frog|tadpole|croaks|4|amphibian
owl|owlet|hoots|2|bird
swan|cygnet|honks|2|bird
goose|gosling|honks|2|bird
bear|cub|growls|4|mammal
wolf|pup|howls|4|mammal
""")

CLASSES = pairs("""eagle:bird, penguin:bird, parrot:bird, ostrich:bird, sparrow:bird, whale:mammal, dolphin:mammal, bat:mammal,
elephant:mammal, tiger:mammal, rabbit:mammal, monkey:mammal, shark:fish, salmon:fish, tuna:fish, trout:fish, snake:reptile,
lizard:reptile, crocodile:reptile, turtle:reptile, toad:amphibian, newt:amphibian, ant:insect, bee:insect, butterfly:insect,
beetle:insect, mosquito:insect""")

LEGS = pairs("""spider:8, ant:6, bee:6, butterfly:6, beetle:6, horse:4, cow:4, elephant:4, dog:4, cat:4, snake:0, eagle:2, chicken:2, penguin:2,
octopus:0, fish:0, crab:10""")

SHAPES = pairs("""triangle:3, square:4, rectangle:4, pentagon:5, hexagon:6, heptagon:7, octagon:8, nonagon:9, decagon:10""")

MIXES = rows("""
red|yellow|orange
blue|yellow|green
red|blue|purple
red|white|pink
black|white|grey
""")

# work or invention | verb | person
MAKERS = rows("""
Hamlet|wrote|William Shakespeare
Romeo and Juliet|wrote|William Shakespeare
Macbeth|wrote|William Shakespeare
Don Quixote|wrote|Miguel de Cervantes
War and Peace|wrote|Leo Tolstoy
Anna Karenina|wrote|Leo Tolstoy
Crime and Punishment|wrote|Fyodor Dostoevsky
Pride and Prejudice|wrote|Jane Austen
Oliver Twist|wrote|Charles Dickens
Moby Dick|wrote|Herman Melville
Faust|wrote|Johann Wolfgang von Goethe
The Odyssey|wrote|Homer
The Divine Comedy|wrote|Dante Alighieri
Frankenstein|wrote|Mary Shelley
Dracula|wrote|Bram Stoker
Les Miserables|wrote|Victor Hugo
Animal Farm|wrote|George Orwell
The Hobbit|wrote|J. R. R. Tolkien
the Mona Lisa|painted|Leonardo da Vinci
The Starry Night|painted|Vincent van Gogh
Guernica|painted|Pablo Picasso
The Scream|painted|Edvard Munch
Girl with a Pearl Earring|painted|Johannes Vermeer
the Moonlight Sonata|composed|Ludwig van Beethoven
The Magic Flute|composed|Wolfgang Amadeus Mozart
The Four Seasons|composed|Antonio Vivaldi
Swan Lake|composed|Pyotr Tchaikovsky
the telephone|invented|Alexander Graham Bell
dynamite|invented|Alfred Nobel
the World Wide Web|invented|Tim Berners-Lee
penicillin|discovered|Alexander Fleming
radium|discovered|Marie Curie
the theory of relativity|developed|Albert Einstein
the theory of evolution|developed|Charles Darwin
the law of gravity|described|Isaac Newton
""")

# event phrase | year
YEARS = rows("""
the first moon landing|1969
the fall of the Berlin Wall|1989
the end of World War II|1945
the start of World War II|1939
the start of World War I|1914
the end of World War I|1918
the French Revolution|1789
the sinking of the Titanic|1912
the first voyage of Columbus to America|1492
the fall of Constantinople|1453
the Battle of Hastings|1066
the Great Fire of London|1666
the Battle of Waterloo|1815
the first powered flight of the Wright brothers|1903
the Russian Revolution|1917
the American Declaration of Independence|1776
the launch of Sputnik|1957
the signing of Magna Carta|1215
the Chernobyl disaster|1986
the eruption that buried Pompeii|79
""")

# question noun phrase | answer | sentence
SINGLES = rows("""
the largest planet in the solar system|Jupiter
the smallest planet in the solar system|Mercury
the closest planet to the Sun|Mercury
the farthest planet from the Sun|Neptune
the hottest planet in the solar system|Venus
the planet known as the Red Planet|Mars
the planet that is famous for its rings|Saturn
the star at the centre of our solar system|the Sun
the natural satellite of the Earth|the Moon
the largest ocean on Earth|the Pacific Ocean
the smallest ocean on Earth|the Arctic Ocean
the tallest mountain on Earth|Mount Everest
the tallest mountain in Africa|Kilimanjaro
the highest mountain in Japan|Mount Fuji
the largest country by area|Russia
the smallest country in the world|Vatican City
the largest continent|Asia
the smallest continent|Australia
the coldest continent|Antarctica
the largest hot desert|the Sahara
the largest rainforest|the Amazon
the largest island|Greenland
the largest animal|the blue whale
the largest land animal|the elephant
the tallest animal|the giraffe
the fastest land animal|the cheetah
the largest bird|the ostrich
the hardest natural material|diamond
the lightest element|hydrogen
the most common gas in the air|nitrogen
the gas that we need to breathe|oxygen
the gas that plants take in|carbon dioxide
the organ that pumps blood|the heart
the organ that we think with|the brain
the largest organ of the human body|the skin
the longest bone in the human body|the femur
the river that flows through London|the Thames
the river that flows through Paris|the Seine
the river that flows through Rome|the Tiber
the river that flows through Cairo|the Nile
the city where the Eiffel Tower stands|Paris
the city where the Colosseum stands|Rome
the city where Big Ben stands|London
the country where the pyramids of Giza stand|Egypt
the country where the Taj Mahal stands|India
the country where Machu Picchu lies|Peru
the chemical formula of water|H2O
the chemical formula of table salt|NaCl
the chemical formula of carbon dioxide|CO2
the freezing point of water in degrees Celsius|0
the boiling point of water in degrees Celsius|100
the number of continents|7
the number of planets in the solar system|8
the number of letters in the English alphabet|26
the number of days in a leap year|366
the number of strings on a violin|4
the number of players in a football team|11
the number of squares on a chessboard|64
the number of sides of a cube|6
the number of degrees in a right angle|90
the number of degrees in a circle|360
the currency of Japan|the yen
the currency of the United Kingdom|the pound
the currency of the United States|the dollar
the currency of India|the rupee
the currency of Germany|the euro
the currency of Switzerland|the franc
the currency of Mexico|the peso
the currency of Poland|the zloty
the currency of Sweden|the krona
the first letter of the Greek alphabet|alpha
the last letter of the Greek alphabet|omega
the first month of the year|January
the last month of the year|December
the shortest month of the year|February
the first President of the United States|George Washington
the first person to walk on the Moon|Neil Armstrong
the first person in space|Yuri Gagarin
the king of the Greek gods|Zeus
the Greek god of the sea|Poseidon
the Roman god of war|Mars
the colour of a ripe banana|yellow
the colour of grass|green
the colour of snow|white
the colour of blood|red
""")

# term | what it is (fits "A term is ...")
DEFINITIONS = rows("""
triangle|a shape with three sides
square|a shape with four equal sides and four right angles
circle|a round shape whose points are all equally far from its centre
island|a piece of land with water all around it
volcano|a mountain that can throw out hot lava
desert|a dry place where very little rain falls
river|a long stream of water that flows to the sea
lake|a large body of water with land all around it
mountain|a very high hill made of rock
planet|a large body that moves around a star
star|a huge ball of hot gas that gives light
moon|a body that moves around a planet
comet|a body of ice and dust with a bright tail
orchard|a piece of land where fruit trees grow
forest|a large area covered with trees
museum|a building where old or beautiful things are shown
library|a place where people can read and borrow books
hospital|a place where sick people are treated
school|a place where children learn
bakery|a shop where bread and cakes are made and sold
pharmacy|a shop where medicines are sold
doctor|a person who treats sick people
teacher|a person who helps others to learn
baker|a person who makes bread and cakes
carpenter|a person who makes things out of wood
pilot|a person who flies an aircraft
sailor|a person who works on a ship
farmer|a person who grows crops or keeps animals
author|a person who writes books
poet|a person who writes poems
judge|a person who decides cases in a court
clock|a device that shows the time
thermometer|a device that measures temperature
telescope|a device that makes distant things look near
microscope|a device that makes tiny things look large
compass|a device that shows where north is
calculator|a device that works out sums
umbrella|a cover that keeps off the rain
bridge|a road built over a river or a valley
tunnel|a passage dug under the ground
ladder|a frame with steps for climbing
hammer|a tool for driving in nails
saw|a tool for cutting wood
mirror|a surface that shows what stands before it
dictionary|a book that explains the meaning of words
atlas|a book of maps
diary|a book in which one writes what happens each day
recipe|a list of steps for cooking a dish
verb|a word for an action
noun|a word for a thing, a place or a person
adjective|a word that describes a noun
vowel|one of the letters a, e, i, o and u
prime number|a number that only one and itself divide
even number|a number that two divides exactly
fraction|a part of a whole number
algorithm|a list of exact steps that solves a problem
computer|a machine that follows the steps of a program
blockchain|a list of blocks in which each block holds the hash of the one before
receipt|a note that shows what was bought and paid
token|a small piece of text that a language model reads at once
""")

WORDS = """apple bread chair table house water river stone cloud light green yellow orange purple silver
garden window kitchen bottle candle pencil paper letter number flower forest mountain island ocean
winter summer spring autumn morning evening market school doctor farmer baker pilot sailor teacher
mother father sister brother friend family tiger lion horse sheep goat mouse rabbit eagle parrot
dolphin shark salmon spider butter cheese sugar pepper tomato potato carrot onion lemon cherry
banana grape peach melon hammer ladder bridge tunnel castle church museum library train plane
truck wheel engine rocket planet comet star moon sun rain snow wind storm thunder gold iron copper
shirt shoes jacket glove hat button pocket basket bucket brush soap towel mirror clock lamp door
floor roof wall fence gate road street city village country music piano guitar violin drum song
dance story poem novel queen king prince knight sword shield crown jewel pearl coral beach wave
sand shell boat ship anchor flag tent camp fire smoke ash cat dog cow pig hen duck frog bee ant
fly owl fox bear wolf deer""".split()

# Things in order of size, smallest first: every two can be compared.
SIZES = """an atom|a grain of sand|an ant|a bee|a coin|a mouse|an apple|a cat|a dog|a sheep|a horse|a car|an elephant|a bus|a house|a whale|
a football field|a village|a city|a country|the Moon|the Earth|Jupiter|the Sun""".replace("\n", "").split("|")

PEOPLE = "Tom Anna Ben Lucy Sam Mia Leo Nina Paul Emma Jack Sara Omar Lena Max Ella Hugo Rosa Ivan Kate".split()
ITEMS = "apples books coins pencils cards stamps marbles cookies stickers eggs balls flowers".split()
COLOURS = "red blue green yellow orange purple black white pink brown grey".split()
FOODS = "pizza soup rice bread pasta salad cheese cake fish chicken".split()
PETS = "dog cat rabbit parrot horse hamster goldfish turtle".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
