"""What the model draws: motifs, styles and backgrounds, and which of their combinations it never sees."""

from ..demo.data import BACKGROUNDS

STYLES = ("noto", "flat")

MOTIFS = {
    "faces": """
        grinning face, beaming face with smiling eyes, face with tears of joy, smiling face with
        heart eyes, smiling face with sunglasses, winking face, thinking face, crying face, angry
        face, sleeping face, nerd face, cowboy hat face, clown face, exploding head, ghost, skull,
        alien, robot, alien monster, jack o lantern, pile of poo
    """,
    "hearts": """
        red heart, broken heart, heart with arrow, blue heart, green heart, yellow heart, purple
        heart, kiss mark, collision, speech balloon
    """,
    "animals": """
        monkey face, gorilla, dog face, poodle, wolf, fox, raccoon, cat face, black cat, lion, tiger
        face, leopard, horse face, unicorn, zebra, deer, cow face, pig face, pig nose, ram, goat,
        camel, llama, giraffe, elephant, mammoth, rhinoceros, hippopotamus, mouse face, hamster,
        rabbit face, rabbit, chipmunk, hedgehog, bat, bear, polar bear, koala, panda, sloth, otter,
        skunk, kangaroo, badger, paw prints, turkey, chicken, rooster, hatching chick, front facing
        baby chick, bird, penguin, dove, eagle, duck, swan, owl, dodo, flamingo, peacock, parrot,
        frog, crocodile, turtle, lizard, snake, dragon face, sauropod, t rex, spouting whale,
        dolphin, seal, fish, tropical fish, blowfish, shark, octopus, spiral shell, coral, crab,
        lobster, shrimp, squid, snail, butterfly, bug, ant, honeybee, lady beetle, spider, scorpion
    """,
    "plants": """
        bouquet, cherry blossom, rose, hibiscus, sunflower, tulip, seedling, potted plant, evergreen
        tree, deciduous tree, palm tree, cactus, four leaf clover, maple leaf, mushroom
    """,
    "food": """
        grapes, melon, watermelon, tangerine, lemon, banana, pineapple, red apple, green apple,
        pear, peach, cherries, strawberry, blueberries, kiwi fruit, tomato, coconut, avocado,
        eggplant, potato, carrot, ear of corn, hot pepper, cucumber, broccoli, garlic, onion, bread,
        croissant, pretzel, pancakes, waffle, cheese wedge, meat on bone, poultry leg, bacon,
        hamburger, french fries, pizza, hot dog, sandwich, taco, burrito, cooking, popcorn,
        spaghetti, sushi, rice ball, dango, soft ice cream, ice cream, doughnut, cookie, birthday
        cake, shortcake, cupcake, chocolate bar, candy, lollipop, honey pot, hot beverage, teapot,
        wine glass, cocktail glass, tropical drink, beer mug
    """,
    "travel": """
        volcano, mount fuji, desert island, house, hut, castle, tent, circus tent, locomotive, bus,
        ambulance, fire engine, police car, taxi, automobile, tractor, racing car, motorcycle,
        bicycle, anchor, sailboat, ship, airplane, helicopter, rocket, flying saucer, alarm clock,
        hourglass done, watch, crescent moon, full moon face, sun with face, star, ringed planet,
        cloud, cloud with rain, rainbow, umbrella, high voltage, snowflake, snowman, fire, droplet,
        water wave, tornado, police car light
    """,
    "things": """
        balloon, wrapped gift, trophy, sports medal, soccer ball, basketball, baseball, american
        football, tennis, bowling, boxing glove, bullseye, pool 8 ball, crystal ball, magic wand,
        video game, game die, puzzle piece, teddy bear, artist palette, kite, christmas tree, party
        popper, crown, top hat, graduation cap, sunglasses, necktie, t shirt, jeans, dress, socks,
        running shoe, high heeled shoe, backpack, handbag, ring, gem stone, lipstick, bell,
        megaphone, musical note, guitar, violin, trumpet, drum, microphone, headphone, radio, mobile
        phone, telephone, laptop, floppy disk, camera, television, candle, light bulb, open book,
        books, pencil, crayon, scissors, pushpin, envelope, package, briefcase, key, locked, hammer,
        axe, wrench, gear, bomb, shield, crossed swords, bow and arrow, magnet, telescope, test
        tube, pill, broom, toilet, door, chair, money bag, coin, moai
    """,
}


def names() -> list[str]:
    """List the motifs."""
    return [" ".join(name.split()) for group in MOTIFS.values() for name in group.split(",")]


def icons() -> list[tuple[str, str]]:
    """List the icons as (motif, style); their numbers are places in this list."""
    return [(name, style) for style in STYLES for name in names()]


def caption(name: str, style: str, background: str) -> str:
    """Write the caption the model is trained with."""
    return f"{name} {style} style {background} background"


def withheld(icon: int) -> int:
    """Number of the background on which an icon is never shown in training.

    The held-out prompts are such combinations: their captions are new to the model too.
    """
    return icon % len(BACKGROUNDS)
