"""What instructions are made of: phrasings with a place for a text, topics, and parts of German sentences."""

MATHS = ["{}", "{}", "{}", "{}", "Solve this step by step: {}", "Question: {}\nAnswer:"]
PASSAGE = [
    "Summarize: {}", "Summarize: {}", "Summarize: {}", "Summarize: {}", "Summarize: {}",
    "Summarize the following passage in two sentences.\n\n{}", "What is this text about?\n\n{}", "Give the main points of this text as a list: {}",
    "{}\n\nWrite three questions about this passage and answer them.", "Continue this text:\n\n{}",
    "Extract all names, places and dates from this passage:\n{}", "Explain the following to a child: {}",
]  # fmt: skip
TRANSLATE = [
    "Translate English to German: {}", "Translate into German: {}", "Translate into French: {}", "Translate English to Spanish: {}",
    "How would you say this in German? {}",
]  # fmt: skip
REWRITE = [
    "Rewrite this sentence in simpler words: {}", "Correct the grammar of this sentence if needed: {}", "Give two paraphrases of: {}",
    "Is the following statement likely to be true? Explain your answer. {}", "Write a short story that begins with this sentence: {}",
    "What can be concluded from this sentence? {}", "Turn this into a newspaper headline and a first paragraph: {}",
    "Classify the sentiment of this sentence as positive, neutral or negative, and say why: {}", "Write a reply to this message: {}",
]  # fmt: skip
CODE = [
    "Complete the code I provided.\n\n{}", "Complete this Python function:\n\n{}", "{}", "Write this function and explain how it works:\n{}",
    "Write a Python function that does what this docstring says, with tests.\n\n{}",
]  # fmt: skip
TOPIC = [
    "Write a short story about {}.", "Explain {} to someone who has never heard of it.", "Write a blog post about {}, with a catchy title.",
    "What are the advantages and disadvantages of {}?", "Draft a short and polite email to a colleague about {}.",
    "Give me five interesting facts about {}.", "Write a poem about {} in four verses.", "Describe the history of {} and why it matters today.",
    "Pretend to be an expert on {} and answer my questions. How did you get interested in it?", "Outline an essay on {} with three sections.",
    "Imagine a dialogue between two friends who disagree about {}.", "What questions should a journalist ask about {}?",
    "Compare {} with something similar and point out the differences.", "You are a tour guide. Tell us about {}.",
    "How would you teach a class of ten-year-olds about {}? Give a plan for one hour.", "Write a persuasive speech about {}.",
    "List the steps that you would take to learn more about {}.", "What are common misunderstandings about {}?",
    "Write a product description that mentions {}.", "What is the relation between {} and the economy?",
    "What might {} look like in a hundred years? Give examples.", "Write a review of a film about {}.",
    "Act as a doctor, a teacher and a lawyer in turn: what would each say about {}?", "Describe a scene with {} in one vivid paragraph.",
]  # fmt: skip
TOPICS = [
    "photosynthesis", "gravity", "the water cycle", "black holes", "vaccines", "plate tectonics", "DNA", "evolution", "electric cars",
    "solar energy", "neural networks", "the periodic table", "antibiotics", "climate change", "recycling", "the immune system", "magnetism",
    "the stock market", "inflation", "taxes", "free trade", "democracy", "human rights", "the French Revolution", "the Roman Empire",
    "the Silk Road", "the Industrial Revolution", "the Cold War", "ancient Egypt", "the Renaissance", "jazz music", "classical music", "opera",
    "poetry", "impressionist painting", "photography", "architecture", "chess", "football", "running a marathon", "yoga", "meditation",
    "healthy eating", "baking bread", "coffee", "tea ceremonies", "Italian cooking", "gardening", "bees", "whales", "cats and dogs", "volcanoes",
    "rain forests", "deserts", "coral reefs", "the Moon", "Mars", "space travel", "the internet", "social media", "online privacy", "open source",
    "sorting algorithms", "recursion", "databases", "version control", "unit tests", "operating systems", "cloud computing", "robots",
    "working from home", "time management", "job interviews", "public speaking", "leadership", "friendship", "a lost key", "an old lighthouse",
    "a talking fox", "a train journey at night", "a small village in the mountains", "a rainy day in London", "a trip to Japan", "learning a language",
    "minimum wages", "public transport", "city planning", "school uniforms", "homework", "video games", "books and films", "museums", "philosophy",
    "ethics", "probability", "prime numbers", "triangles and circles", "calculus", "statistics", "the scientific method", "sleep", "stress",
    "first aid", "moving to a new city", "saving money", "starting a company", "customer complaints", "a birthday party", "a wedding speech",
]  # fmt: skip
GERMAN = {
    "who": [
        "Die Regierung", "Der Bürgermeister", "Das Unternehmen", "Die Polizei", "Der Trainer der Mannschaft", "Die Schule", "Ein Sprecher der Partei",
        "Die Europäische Union", "Der Präsident", "Die Feuerwehr", "Eine Studie der Universität", "Das Krankenhaus", "Die Gewerkschaft", "Der Verein",
        "Die Stadt Hamburg", "Der Autor des Buches", "Die Ärztin", "Der Hersteller", "Die Opposition", "Das Gericht in München", "Mein Nachbar",
        "Die junge Musikerin", "Der Minister", "Die Firma aus Stuttgart", "Eine Gruppe von Forschern", "Der Besitzer des Hotels", "Die Bank",
    ],
    "does": [
        ("hat", "einen neuen Plan für den Verkehr vorgestellt"), ("will", "die Kosten für Strom und Heizung senken"), ("hat", "das Spiel am Ende verloren"),
        ("wird", "ein neues Gebäude am Bahnhof bauen"), ("musste", "die Straße für mehrere Stunden sperren"), ("hofft", "auf eine schnelle Lösung des Problems"),
        ("warnt", "vor den Folgen der Krise"), ("hat", "mehr als tausend Besucher begrüßt"), ("sucht", "nach Zeugen des Unfalls"),
        ("kann", "die Entscheidung nicht verstehen"), ("hat", "viel Geld für die Kinder gesammelt"), ("plant", "eine Reise nach Spanien und Italien"),
        ("hat", "die Zahl der Mitarbeiter um ein Drittel erhöht"), ("spricht", "mit den Eltern über die Zukunft der Schule"),
        ("verkauft", "weniger Autos als im letzten Jahr"), ("hat", "den Vertrag bis zum Sommer verlängert"), ("zeigt", "Bilder aus der Geschichte der Stadt"),
        ("fordert", "bessere Regeln für den Schutz der Umwelt"), ("hat", "die Ergebnisse der Wahl bekannt gegeben"), ("öffnet", "am Sonntag wieder die Türen"),
        ("untersucht", "die Ursache des Feuers"), ("möchte", "das alte Haus am Fluss kaufen"), ("bietet", "kostenlose Kurse für Anfänger an"),
        ("hat", "von dem Fehler nichts gewusst"), ("rechnet", "mit einem langen und kalten Winter"),
    ],
    "how": [
        "am Montag", "in der vergangenen Woche", "trotz der Kritik", "nach langen Gesprächen", "wegen des schlechten Wetters", "seit drei Jahren",
        "im nächsten Frühling", "zum ersten Mal", "nach Angaben der Zeitung", "ohne Hilfe der Nachbarn", "vor wenigen Tagen", "im Herbst 2014",
        "gemeinsam mit anderen Städten", "in einem Gespräch mit der Presse", "für viele überraschend", "mit großer Mühe", "heute Morgen",
    ],
}  # fmt: skip
