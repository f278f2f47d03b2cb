"""
Word lists of the patterns in `replies.py`, as parts of regular expressions for lower-cased text.

A word of the first five lists in a reply prevents an acceptance. A word too many costs one more request; a word too few lets an
invented sound into the corpus.
"""

# Also "nt" without an apostrophe, and common negations of other languages: a checker may continue in one after its yes.
NEGATIONS = (
    r"no|not|nor|neither|none|never|nothing|nobody|nowhere|without|cannot|nope|nah|non|nicht|kein\w*|aber|pas|mais|pero|sauf"
    r"|(?:is|are|was|were|do|does|did|ca|could|wo|would|has|have|had|should)n'?t|ain'?t|can'?t|won'?t"
)
EXCEPTIONS = (
    r"but|however|except\w*|excluding|excepting|although|though|albeit|whereas|despite|yet|unless|until|apart|aside|besides"
    r"|other than|otherwise|instead|nonetheless|nevertheless|wait|hold on|on second thought|caveats?|reservations?|sorry"
    r"|unfortunately|sadly|only|merely|solely|barely|hardly|scarcely|rarely|seldom|rather|bar|save for|minus|note that"
    r"|(?:all|everything) (?:that|which) (?:is|was|i|we|one|can)|all i"
    r"|(?:right|correct|accurate|true) (?:about|on|for|regarding|as to)|provided"
    r"|as long as|so long as|another|elsewhere|out of|outside|replac\w+|barring|leaving out|discounting|ignoring|disregarding"
)
PARTS = (
    r"partial\w*|partly|in parts?|parts?|half|halfway|some|somewhat|sometimes|most|mostly|mainly|largely"
    r"|majority|almost|nearly|roughly|approximately|essentially|basically|generally|technically|broadly|loosely|virtually"
    r"|practically|arguably|more or less|kind of|sort of|kinda|sorta|degree|extent|at least|at best|several|few|many"
    r"|up to a point|in a way|in a sense|less|so-so|faintly|just (?:the|an?|one|some|about|barely)|give or take|single"
    r"|(?<!every )(?<!each )(?:\d+|one|two|three|four|five|six|seven|eight) (?:out )?of|one (?:sound|claim|part)"
    r"|(?<!100 )(?<!100)percent|former|latter|the rest|(?:that|this) one|something"
    r"|first (?:one|two|three|half|few)|certain (?:sounds?|ones|parts?|of)|limited"
)
DOUBTS = (
    r"maybe|perhaps|possib\w+|probab\w+|likely|seem\w*|appear\w*|might|may|would|should|could(?! (?:be |clearly |also )*hear)"
    r"|guess\w*|suppos\w+|assum\w+|think|thought|believe\w*|suspect\w*|presum\w+|alleged\w*|depend\w*|if|doubt\w*"
    r"|questionabl\w+|questioned|in question|debatable|ambigu\w+|hard to|difficult\w*|challeng\w+|tricky|idea"
    r"|sounds? (?:more )?like|more like|resembl\w+|similar|confus\w+|mistak\w+|hesita\w+|tentative\w*|conditional\w*|open to"
    r"|as far as i|hmm*|close|fairly|pretty|reasonably"
)
FAULTS_OF_TRACES = (
    r"missing|misses|missed|absent|absence|lack(?:s|ing|ed)?|omit\w*|hallucinat\w+|imagin\w+|invent\w+|fabricat\w+|made[- ]up"
    r"|fiction\w*|figment\w*|fals\w+|wrong\w*|err(?:or\w*|oneous\w*|s|ed)|contradict\w*|disagree\w*|disput\w+|discrepan\w+"
    r"|disappear\w*|differ\w*|exaggerat\w*|overstat\w*|extra|fail\w*|silen\w+|reject\w*|mute\w*|weak|ghost|phantom"
    r"|mis(?:s|t|h|i|l|r|c|p|ch|at)\w+"
    r"|in(?:audible|correct|accura|complete|distinct\b|consistent|valid|sufficient|conclusive)\w*"
    r"|im(?:possible|plausible|precise|percept)\w*"
    r"|un(?!mistak|ambig|doubt|equiv|der|it|iq|animous|ison|iform|iversal)\w+"
)

# Faults of a trace. A double negation ("no invented sounds") affirms instead.
FRAUDULENT = (
    r"(?:missing|absent|lacking|inaudible|unheard|left out|omitted|made[- ]up|invented|imagined|imaginary|hallucinated"
    r"|fabricated|false|wrong|incorrect|unsupported)"
)
SENSED = (
    r"(?:heard|audible|present|there|real|correct|accurate|true|confirmed|detected|identified|perceived|recogni[sz]able"
    r"|supported|included)"
)
# Verbs of audible things. Another verb after a yes ("the bell belongs to the next scene") may take the yes back.
SOUND_VERBS = (
    r"(?:bark|ring|play|chirp|tweet|meow|purr|growl|howl|roar|hiss|buzz|hum|beep|honk|blare|wail|whistle|sing|speak|talk|laugh|cr[iy]"
    r"|scream|shout|whisper|cough|sneeze|clap|applaud|cheer|knock|slam|click|tick|rattle|rumble|crackle|splash|drip|flow|pour"
    r"|rain|blow|run|pass|drive|start|stop|begin|end|follow|come|sound|strum|drum|beat|tap|hit|chime|toll|crow|moo|neigh|quack"
    r"|squeak|screech|creak|thunder|boom|explode|rev|idle|accelerate|continue|repeat|open|close|walk|sob|snore|squawk|croak)"
    r"(?:s|es|ed)?"
)
SOUND_FILE = (
    r"(?:the |any |an |your |this |that |these |provided |attached )*"
    r"(?:audio|recordings?|sound ?(?:files?|clips?)|clips?|files?|media)"
)

# Refusals other than "I cannot ...".
REFUSALS = (
    r"\b(?:as an? (?:\w+ )?(?:ai|language model|llm|assistant)|as a text[- ]based)\b"
    r"|\bi(?:'m| am) (?:just |only )?an? (?:\w+ )?(?:ai|language model|text[- ]based)\b"
    r"|\b(?:do not|don't) have (?:access to|the ability to (?:hear|listen)|ears)\b"
    r"|\b(?:audio|media|sound)(?: \w+)? (?:is|are)(?: not|n't) (?:supported|available|accessible|provided|attached)\b"
    r"|\bno (?:audio|recording|sound file)(?: \w+)? (?:was|is|has been|were|attached|provided|included)\b(?! heard| audible)"
    r"|\bthere(?: is|'s| was) no (?:audio|recording|attachment|sound file)\b(?! of| in)"
    r"|\bplease (?:provide|upload|attach|share|send|supply)\b"
    r"|\b(?:against|violates?) (?:my|our|the) (?:\w+ )?(?:polic|guideline)\w+|\b(?:must|have to) decline\b"
    r"|\bi (?:won't|will not|refuse to|decline to) (?:assist|help|answer|do|listen)\b"
)
