"""The words of English Wikipedia's markup: which sections, namespaces, templates and tags mean what. Tables only."""


def _names(*lines: str) -> frozenset[str]:
    return frozenset("|".join(lines).split("|"))


DROPPED_SECTIONS = _names(
    "references|reference|see also|external links|external link|further reading|notes|note|sources|source|bibliography",
    "citations|footnotes|footnote|notes and references|references and notes|notes and citations|works cited",
    "primary sources|secondary sources|tertiary sources|general references|cited references|cited sources|literature",
    "sources and further reading|references and further reading|selected bibliography|gallery|image gallery",
    "general and cited references|explanatory notes|notes and sources|references and sources",
)
MEDIA = _names("file|image|media")
NAMESPACES = _names(
    "talk|user|user talk|wikipedia|wikipedia talk|wp|wt|project|file talk|mediawiki|mediawiki talk|template",
    "template talk|help|help talk|category talk|portal|portal talk|book|book talk|draft|draft talk|education program",
    "timedtext|timedtext talk|module|module talk|gadget|special|topic",
    # sister projects
    "wikt|wiktionary|wikisource|s|wikiquote|q|wikibooks|b|wikinews|n|wikiversity|v|wikivoyage|voy|wikispecies|species",
    "commons|c|meta|m|mw|wikidata|d|wikimedia|foundation|phab|doi|bugzilla|toollabs|iarchive|oeis|rfc",
)

# Templates whose text stands in the sentence, by which parameter is shown.
SECOND = _names("lang|transl|transliteration|langx")
FIRST = _names(
    "nowrap|nobr|nobold|noitalic|small|big|smaller|larger|em|strong|abbr|tooltip|linktext|vanchor|visible anchor",
    "script|unicode|nq|nastaliq|not a typo|sic|as written|proper name|nihongo|nihongo2|nihongo krt|formatnum",
    "pronunciation|mvar|var|keypress|bold|rtl-lang|lang-rtl",
)
LINKS_ABROAD = _names("ill|interlanguage link|ill2")
COMPUTED = _names("convert|cvt|val|circa|c.|ca.|frac|fraction|as of")
SYMBOLS = {
    **dict.fromkeys(("ndash", "en dash"), "–"),
    **dict.fromkeys(("spaced ndash", "snd", "spnd", "spaced en dash", "snds", "dash", "spndash"), " – "),
    **dict.fromkeys(("mdash", "em dash"), "—"),
    **dict.fromkeys(("nbsp", "space", "thinsp", "hair space", "thin space", "spaces"), " "),
    **dict.fromkeys(("'", "apostrophe"), "'"),
    **dict.fromkeys(("'s", "apostrophe s"), "'s"),
    **dict.fromkeys(("·", "middot"), "·"),
    "!": "|",
    "=": "=",
    "okina": "ʻ",
    "ayin": "ʿ",
    "hamza": "ʾ",
    "pound": "£",
    "euro": "€",
    "bull": "•",
}

# Tags dropped with all they hold. Of every other tag the text stays.
DROPPED_TAGS = _names(
    "references|gallery|math|chem|ce|timeline|score|imagemap|hiero|graph|syntaxhighlight|source|pre|inputbox|section",
    "categorytree|templatedata|noinclude|includeonly|mapframe|maplink|script|style|templatestyles|indicator",
)
TABLE_TAGS = _names("table|tr|td|th")
BLOCK_TAGS = _names("p|div|blockquote|poem|li|center")

# Templates that make a page a disambiguation page; each also as "... disambig".
DISAMBIGUATIONS = _names(
    "disambig|disambiguation|disambiguation cleanup|disambig cleanup|disambiguation page|disamb|dab|disam|hndis|hn-dis",
    "hndisambig|geodis|geo-dis|roaddis|schooldis|mathdab|numberdis|mil-unit-dis|letter-numbercombdisambig|tndis",
    "shipindex-dab|schooldab|stationdis|hospitaldis|churchdis|2cc|3cc|4ca|lndab",
)
DISAMBIGUATED = _names(
    "human name|place name|geographical|airport|biology|call sign|caselaw|chinese title|genus|hospital|letter",
    "letter-number combination|mathematical|math|military unit|music|number|opus number|phonetics|road|school|ship",
    "species latin name|species latin name abbreviation|station|synagogue|taxonomic authority|taxonomy|temple",
    "wikipedia|wp|title and name|given name|surname|mosque|church|castle|split|battle|fungus|plant common name",
)

# Descriptions that say nothing of their subject.
GENERIC = _names(
    "topics referred to by the same term|wikimedia list article|wikipedia list article|wikimedia disambiguation page",
    "wikimedia category|wikimedia template|wikimedia project page|wikipedia disambiguation page|disambiguation page",
    "index of articles associated with the same name|name list|list article|wikimedia article page|set index article",
    "wikimedia duplicated page|wikimedia history article|thumb|right",
)

# They do not end a sentence.
ABBREVIATIONS = _names(
    "mr|mrs|ms|dr|prof|st|ste|sr|jr|gen|col|capt|lt|sgt|maj|rev|hon|gov|sen|rep|pres|fr|bros|co|corp|inc|ltd|vs|etc|cf",
    "ca|c|al|approx|dept|est|fl|no|nos|vol|vols|pp|p|ed|eds|op|cit|trans|ch|sec|fig|figs|lit|r|b|d|née|aka|lat|gr|arab",
    "jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mt|ft|ave|blvd|rd|univ|assn|bc|ad|km|cm|mm|kg|mi|sq|viz|illus|mss",
    "adm|brig|cdr|cmdr|supt|insp|messrs|mme|mlle|sp|spp|var|subsp|cv",
)
