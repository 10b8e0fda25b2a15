"""What the simulated advertisers sell, and the many ways in which they say it.

Thirty topics of three subtopics each. A subtopic has things (what stands in a title) and uses (what
stands in a body). Phrases of one subtopic share a meaning and few words, so that whoever reads the
meaning generalises to an ad it never saw, and whoever counts words must have met the words. Phrases
after the bar are late vocabulary: they appear mostly in ads that arrive during the simulated period.

Format of a block: ``topic / category``, then for each subtopic ``- things | late things => uses | late uses``,
phrases separated by semicolons, line breaks without meaning.
"""

TOPICS = """
running / sport
- cushioned road running shoes; lightweight daily trainers; carbon-plate racers; marathon-ready sneakers
  | springy tempo footwear; rocker-soled pavement flyers
  => Log your morning miles in comfort; Shave seconds off your 10K; Train for your first half
  | Lace up before sunrise; Chase a personal best
- grippy trail runners; mountain-ready lugged soles; off-road sneakers; mud-proof fell shoes
  | forest-path footwear; ridge-line scramblers
  => Sure footing on wet rock; Leave the tarmac behind; Dance down steep descents
  | Every muddy hill is yours; Swap the city loop for singletrack
- GPS pace watch; heart-rate chest strap; sprint coaching app; stride sensor pods
  | lactate-threshold wrist computer; cadence clip
  => Know your splits at a glance; A plan that adapts to tired legs; Interval sessions without guesswork
  | See your aerobic base grow; Count every kilometre

cycling / sport
- aero road bike; carbon-frame racer; drop-bar endurance machine; featherweight climbing bicycle
  | gran-fondo two-wheeler; wind-tunnel tuned frameset
  => Hold the fast group's wheel; Float over Alpine passes; Long Sundays in the saddle
  | Attack on the final climb; A century ride without sore wrists
- full-suspension mountain bike; dropper-post hardtail; enduro rig; knobbly downhill tyres
  | bike-park shredder; dual-crown gravity sled
  => Flow through berms and jumps; Roots and drops made smooth; Own the black run
  | Send the rock garden; Lift-served laps all summer
- electric commuter bike; folding city cycle; pannier-ready step-through; belt-drive urban pedaller
  | battery-assisted cargo hauler; rush-hour e-wheels
  => Roll past the traffic jam; Arrive at work without a sweat; School run on two wheels
  | Retire the second car; Glide up every hill to the office

yoga / sport
- non-slip yoga mat; natural rubber practice pad; cork blocks and strap set; bolster for restorative poses
  | sweat-grip asana surface; sun-salutation kit
  => Steady in downward dog; Roll out and breathe; A softer landing for knees
  | Hold warrior pose for longer; Your studio in the living room
- live vinyasa classes; mobility sessions with a teacher; online stretching programme; breath-and-flow studio pass
  | ashtanga mentoring; hip-opener course
  => Unwind a stiff back in fifteen minutes; Gentle enough for beginners; Follow along at your own pace
  | Touch your toes by spring; Balance, strength and calm
- reformer Pilates membership; core-control workshop; barre and posture lessons; springboard exercise studio
  | deep-abdominal conditioning; spine-alignment series
  => Stand taller after every session; Small movements, big results; Low-impact strength for desk workers
  | Wake up sleepy stabilisers; Tone without the pounding

strength / sport
- adjustable dumbbells; cast-iron kettlebells; Olympic barbell and plates; space-saving power rack
  | loadable sandbag trainer; garage squat stand
  => Build your gym at home; Heavier every week; Deadlift without leaving the house
  | Progressive overload made easy; Grip it and press
- whey protein isolate; creatine monohydrate; pea-and-rice shake; recovery amino blend
  | micellar casein tub; post-lift powder
  => Repair muscle while you rest; Thirty grams in every scoop; Mixes clean, tastes of real cocoa
  | Fuel for the final rep; Feed your gains
- personal lifting coach; twelve-week hypertrophy plan; powerlifting club trial; bodybuilding programme
  | one-to-one barbell mentoring; strongman induction
  => Someone to fix your squat; Break through the plateau; Technique checked rep by rep
  | Bench more than your bodyweight; Beginner to brawny

camping / sport
- two-person backpacking tent; storm-proof dome shelter; ultralight tarp; family tunnel tent
  | freestanding bivouac; four-season canvas pod
  => Pitched in four minutes; Dry through the downpour; Wake up above the clouds
  | A roof under a billion stars; Fold your bedroom into a rucksack
- down sleeping bag; inflatable trekking pad; titanium stove; packable camp lantern
  | freeze-dried summit dinners; solar firelight
  => Boil water in ninety seconds; Warm at minus ten; Weighs less than your lunch
  | Hot supper at the bothy; Snug beside the tarn
- waterproof hiking boots; framed trekking rucksack; folding walking poles; merino base layer
  | hut-to-hut pack; blister-free ramblers
  => Walk the ridge all day; Carry a week without pain; Breathes uphill, shields on top
  | Waymarked paths are calling; Ten peaks, no sore feet

furniture / home
- three-seat velvet sofa; modular corner couch; reclining loveseat; deep linen settee
  | snuggler armchair; chaise-end lounger
  => Sink in after a long day; Covers come off and wash; Room for the whole family on film night
  | The nap you deserve; Sprawl out, feet up
- solid oak dining table; extending walnut trestle; bentwood chairs; farmhouse bench
  | drop-leaf breakfast set; pedestal supper table
  => Seats ten at the holidays; Made by joiners, not robots; Where everyone gathers to eat
  | Sunday roast for the clan; Hand-planed to last generations
- sit-stand desk; ergonomic mesh chair; floating wall shelves; slim filing cabinet
  | lumbar-support task seat; height-adjustable workstation
  => Kinder to your spine; A tidy corner for working from home; Raise it at the touch of a button
  | Nine hours without slouching; Turn the box room into an office

kitchen / home
- forged chef's knife; Damascus steel santoku; paring and boning set; magnetic blade rack
  | whetstone and honing kit; hand-ground petty cleaver
  => Glides through ripe tomatoes; An edge that lasts for months; Dice an onion in seconds
  | Julienne like a professional; Balanced in the hand
- enamelled cast-iron casserole; copper-core saucepan; nonstick ceramic skillet; carbon-steel wok
  | lidded braiser; tri-ply stockpot
  => Slow stews and crusty bread; Even heat, no hot spots; From hob to table
  | Sear, simmer, serve; Eggs slide right off
- countertop air fryer; quiet stand mixer; high-speed blender; slow juicer
  | sous-vide circulator; multi-cooker with pressure lid
  => Crisp chips with a spoonful of oil; Kneads dough while you rest; Smoothies without lumps
  | Dinner at the press of one button; Weeknight cooking halved

garden / home
- heirloom tomato seeds; spring bulb collection; bare-root roses; wildflower meadow mix
  | old-variety sweet peas; cottage perennials
  => Pick supper from your own patch; Colour from March to frost; Bees will thank you
  | Sow now, smell it in June; Blooms that come back every year
- cordless hedge trimmer; robotic lawn mower; stainless digging spade; bypass secateurs
  | battery strimmer; self-steering grass cutter
  => Stripes without pushing; Clean cuts on thick branches; Tame the wild corner
  | Let it trim while you doze; An afternoon's pruning in an hour
- cedar raised beds; polycarbonate greenhouse; drip irrigation kit; rotating compost bin
  | cold frame and cloche; rainwater butt
  => Grow salad through winter; Water while on holiday; Kitchen scraps into rich soil
  | Seedlings safe from slugs; Feed the earth for free

cleaning / home
- cordless stick vacuum; robot hoover; pet-hair upright; handheld dust buster
  | self-emptying floor droid; cyclonic carpet sweeper
  => Floors done before you get home; Pulls fur from every rug; Sixty minutes on a charge
  | Crumbs vanish overnight; No more dragging a cord
- plant-based laundry sheets; enzyme stain remover; refillable dish soap; limescale spray
  | concentrated cleaning tablets; probiotic surface foam
  => Tough on grease, gentle on rivers; No plastic jug to throw away; Fresh linen, sensitive skin
  | Drop in water and shake; Red wine out in one wash
- weekly house cleaners; end-of-tenancy scrub; window washing service; oven valet
  | vetted domestic help; spring-clean crew
  => Come home to sparkling rooms; Book a trusted pair of hands; Get your deposit back
  | Hand over the mop; Weekends free of chores

tools / home
- brushless cordless drill; impact driver kit; compact circular saw; rotary hammer
  | random-orbit sander; plunge router
  => Drives long screws into hardwood; Two batteries, one charger; Through brick like butter
  | Straight cuts, first time; Shelves up by lunchtime
- low-odour matt emulsion; tester pots in sixty shades; masonry paint; furniture chalk finish
  | limewash plaster coat; peel-and-stick swatches
  => One coat covers the scuffs; A new mood for the bedroom; Dry in an hour
  | Roll on a calmer wall; Revive the old dresser
- local plumber; certified electrician; loft conversion builder; bathroom fitter
  | heat-pump installer; roof and gutter repairer
  => Fixed price before work starts; That drip stopped today; Quotes from checked tradespeople
  | No mess left behind; Wiring made safe

coffee / food
- single-origin beans; dark-roast espresso blend; washed Ethiopian lot; small-batch decaf
  | anaerobic microlot; honey-process harvest
  => Roasted on Tuesday, posted on Wednesday; Notes of cherry and cocoa; Your best cup yet
  | Sip something rare; The grower is named on the bag
- bean-to-cup machine; burr grinder; pour-over dripper; gooseneck kettle
  | lever espresso maker; dosing scale and tamper
  => Café crema in your kitchen; Dial in the perfect shot; Silky foam at home
  | Barista results before breakfast; Extraction under control
- loose-leaf oolong; first-flush Darjeeling; ceremonial matcha; caffeine-free rooibos
  | smoked lapsang; hand-rolled jasmine pearls
  => Steep, inhale, slow down; A calm kind of energy; Picked at dawn on high slopes
  | Pour a quiet moment; The pot that lasts all afternoon

meals / food
- weekly recipe box; pre-portioned dinner kit; thirty-minute supper parcels; measured ingredients by post
  | chef-designed cook-along crate; chop-free meal bag
  => No more what's-for-tea; Everything you need, nothing to waste; Dinner on the table by seven
  | Skip the supermarket queue; Cook something new on Thursday
- ready-made frozen curries; chilled gourmet trays; microwaveable stews; slow-cooked pies
  | flash-frozen bistro plates; heat-and-eat ramen
  => Real food on a late night; Five minutes from freezer to fork; Made by cooks, not factories
  | When you cannot face the stove; Homemade taste, zero effort
- organic vegetable crate; grass-fed butcher's box; day-boat fish delivery; farm eggs and milk round
  | wonky fruit rescue; seasonal greens share
  => Straight from the field; Know the farmer who grew it; Caught this morning
  | Picked while you slept; Taste what is in season

snacks / food
- seventy-percent chocolate bars; salted caramel truffles; bean-to-bar tasting set; hazelnut pralines
  | ruby cacao bites; single-estate ganache
  => Melt one slowly; A gift that never lasts; Cocoa from one family estate
  | After dinner, one square; Snap, sniff, savour
- roasted chickpea puffs; sea-salt lentil crisps; high-fibre oat bites; spiced nut mix
  | baked seaweed thins; air-popped sorghum
  => Crunch without the guilt; Half the fat, all the flavour; Tide you over till lunch
  | Desk drawer rescue; Munch something wholesome
- kombucha on tap; botanical tonic; cold-pressed ginger shots; zero-sugar craft soda
  | water kefir; alcohol-free aperitif
  => Fizz that is good for you; A grown-up drink for the sober curious; Zing in one gulp
  | Cheers without the headache; Bubbly, sharp and light

citybreaks / travel
- long weekend in Lisbon; Vienna museum pass; Kyoto temple tour; two nights in Copenhagen
  | Tbilisi old-town stay; Porto riverside escape
  => Galleries by day, jazz by night; Land on Friday, back on Sunday; Wander cobbled lanes
  | Pastries on a rooftop; See the old quarter on foot
- boutique hotel near the opera; loft apartment downtown; heritage guesthouse; capsule rooms by the station
  | canal-side aparthotel; converted bank suites
  => Sleep in the heart of things; Breakfast in the courtyard; Check in with your phone
  | Croissants at your door; Steps from everything
- sleeper train tickets; rail pass across Europe; low-fare flights; airport transfer
  | overnight couchette; flexible coach card
  => Fall asleep here, wake up abroad; Eleven countries, one ticket; Board in minutes
  | Watch borders roll by; Change your date for nothing

beach / travel
- all-inclusive Greek island resort; Caribbean palm hideaway; Algarve villa with pool; Maldives overwater bungalow
  | Zanzibar lagoon lodge; Cycladic cave house
  => Bare feet for a whole week; Cocktails by turquoise water; Sun, sand and no alarm clock
  | Salt on your skin; Hammock, book, horizon
- reef-safe sunscreen; quick-dry swimwear; polarised sunglasses; packable straw hat
  | UPF rash top; sarong and tote
  => Stay out longer, burn less; Dries before the bus comes; Made for salt and surf
  | Shade wherever you go; From shore to bar
- surf camp in Portugal; beginner diving course; catamaran sailing week; paddleboard hire
  | kite lagoon clinic; freediving retreat
  => Stand up on your first wave; Breathe among the fish; Learn the ropes at sea
  | Ride the wind; Meet a turtle

audio / tech
- noise-cancelling headphones; wireless earbuds; open-back studio cans; bone-conduction headset
  | planar-magnetic over-ears; hi-res in-ear monitors
  => Silence the commute; Forty hours between charges; Hear the breath before the note
  | Shut out the open-plan office; Every whisper of the mix
- bookshelf speakers; belt-drive turntable; valve amplifier; surround soundbar
  | floor-standing towers; phono preamp
  => Vinyl as it should sound; Cinema bass under the screen; Fill the room with warmth
  | Drop the needle; Bring the orchestra home
- podcast microphone; home recording interface; analogue synthesiser; portable field recorder
  | sixteen-step drum machine; ribbon mic bundle
  => Sound like the radio; Your bedroom, a studio; Capture the take
  | Patch, twist, loop; Publish your first episode

photo / tech
- full-frame mirrorless camera; fast fifty prime lens; weather-sealed telephoto; compact travel zoom
  | medium-format body; pancake wide-angle
  => Creamy backgrounds in low light; Freeze the kingfisher mid-dive; Sharp to the corners
  | Street portraits at dusk; Catch the decisive moment
- 4K drone; three-axis gimbal; pocket action cam; cine slider
  | FPV quadcopter; underwater housing
  => Shots from above the treeline; Smooth footage while running; Film your whole descent
  | Fly the coastline; Steady as a crane
- lay-flat photo books; fine-art prints; preset editing pack; family portrait session
  | gallery canvas; archival scanning service
  => Get memories off your phone; Colours that last a century; The baby's first year in pages
  | Wall-worthy from one click; Grandma's slides, rescued

gaming / tech
- open-world fantasy epic; cosy farming sim; tactical squad shooter; roguelike deck-builder
  | sci-fi colony manager; hand-drawn metroidvania
  => A hundred hours of quests; Dragons await; One more run before bed
  | Lose yourself in another realm; Boss fights that bite
- mechanical keyboard; high-refresh monitor; ultralight esports mouse; liquid-cooled gaming PC
  | hall-effect pad; curved OLED panel
  => Frames without stutter; Click faster than they can; Climb the ranked ladder
  | See them first; Zero lag, no excuses
- cooperative board game; legacy campaign box; miniatures starter set; murder-mystery party kit
  | trick-taking card duel; dungeon-crawl tabletop
  => Phones down, dice out; Laughter round the table; Easy to learn, hard to leave
  | Gather four friends; Roll for glory

smarthome / tech
- video doorbell; outdoor security camera; smart lock; motion-sensing floodlight
  | fingerprint deadbolt; driveway sentry
  => See who is there from anywhere; Let the courier in safely; Sleep soundly, house watched
  | Parcels never vanish again; Keys are history
- learning thermostat; radiator valves by room; solar panels with storage; energy monitor
  | hybrid inverter; rooftop photovoltaics
  => Cut the heating bill; Warm rooms only when needed; Make your own power
  | Sunlight into savings; Watch the meter run backwards
- mesh wifi router; voice assistant hub; colour-changing bulbs; automatic blinds
  | tri-band access points; scene-setting lamp strip
  => Signal in every corner; Dim the lights without getting up; Wake to a gentle glow
  | Buffering is over; Say it and it happens

saving / money
- round-up savings app; fixed-rate deposit; instant-access account; budgeting planner
  | spare-change jar in your phone; high-yield nest egg
  => Put pennies aside without noticing; Know where your salary goes; Interest paid monthly
  | A cushion for rainy days; Reach the goal sooner
- low-cost index fund; stocks and shares starter; pension consolidation; robo-adviser portfolio
  | world tracker plan; retirement pot finder
  => Own a slice of everything; Start investing with fifty dollars; Let compounding do the work
  | Retire on your own terms; Diversified in three taps
- cashback credit card; balance transfer offer; mortgage broker; debt consolidation loan
  | first-home lender; zero-fee plastic
  => Money back on groceries; One payment instead of five; Find a lower rate
  | Keys in your hand by autumn; Get out of the red

insurance / money
- comprehensive car insurance; pay-per-mile cover; young driver policy; breakdown rescue
  | telematics motor plan; roadside recovery club
  => Drive less, pay less; Covered from the first kilometre; Help within the hour
  | Bumps forgiven; Never stranded at midnight
- life insurance; income protection; critical illness plan; private health cover
  | family legacy policy; dental and optical scheme
  => Look after those you love; Salary paid while you recover; See a specialist sooner
  | Peace of mind for parents; If the worst should happen
- home and contents policy; renters protection; pet health plan; annual travel cover
  | gadget safeguard; flood and fire shield
  => Burst pipes handled; Vet bills without tears; Lost luggage, sorted
  | Your things, replaced; Claims settled in days

languages / learning
- Spanish lessons online; conversational French; Italian for beginners; business German
  | Portuguese by podcast; Catalan crash course
  => Order tapas like a local; Speak from day one; Ten minutes over breakfast
  | Dream in another tongue; Hold your first conversation
- Japanese kanji trainer; Mandarin tutor; Korean through drama; Arabic script course
  | hiragana flashcards; Cantonese tones coach
  => Read the menu in Tokyo; Master tones with a native; Two thousand characters made easy
  | Follow your favourite series without subtitles; Stroke by stroke
- English exam preparation; academic writing clinic; accent coaching; certificate mock tests
  | fluency bootcamp; grammar editor
  => Score high enough for university; Sound confident in meetings; Essays that earn top marks
  | Get the band you need; Pronounce it right

coding / learning
- Python bootcamp; web development course; app-building for beginners; JavaScript evening class
  | Rust apprenticeship; full-stack career switch
  => Write your first program tonight; From zero to hired; Build a real portfolio
  | Ship something on Monday; Change careers by Christmas
- machine learning certificate; data analysis with spreadsheets; statistics refresher; SQL drills
  | neural network nanodegree; dashboard masterclass
  => Turn numbers into decisions; Train a model yourself; Query anything
  | Predict, plot, present; Make sense of messy tables
- cybersecurity diploma; cloud architect exam; network engineer track; ethical hacking labs
  | zero-trust practitioner; penetration testing range
  => Stop the breach; Get certified, get promoted; Capture the flag
  | Think like an intruder; Guard the servers

music / learning
- acoustic guitar; beginner ukulele; electric bass bundle; nylon-string classical
  | baritone uke; parlour six-string
  => Strum your first song; Warm tone, easy action; Campfire ready
  | Three chords and the truth; Pick it up and play
- digital piano; weighted-key keyboard; upright rental; keyboard lessons by video
  | stage eighty-eight; sight-reading app
  => Play Satie by summer; Practise at midnight on headphones; Two hands in two weeks
  | Ivories without the tuner; Scales that feel like games
- festival weekend tickets; chamber concert season; stand-up comedy night; stadium tour presale
  | jazz club membership; opera day seats
  => Sing along under the sky; Front row or balcony; Live is different
  | Hear it before the record; The encore you will talk about

books / learning
- debut novel of the year; slow-burn romance; Nordic crime series; translated literary fiction
  | locked-room thriller; multi-generation saga
  => You will not put it down; A twist on the last page; Read it before the film
  | Stay up past midnight; Fall for a stranger in chapter two
- audiobook subscription; e-ink reader; independent bookshop club; short-story app
  | narrated bestsellers; monthly paperback parcel
  => Listen while you cook; A thousand titles in your pocket; Chosen by people who read
  | Press play on a classic; Surprise reads at your door
- popular physics; history of empires; biography of a pioneer; essays on nature
  | brain science primer; atlas of lost cities
  => Understand black holes at last; The past, told like a thriller; Be the curious one at dinner
  | Big ideas in small chapters; A life that changed everything

baby / family
- travel pushchair; convertible car seat; ergonomic baby carrier; one-hand fold stroller
  | newborn sling; rear-facing booster
  => Folds while you hold the little one; Safest seat for the ride home; Both hands free
  | Strolls over any kerb; Close to your heart
- organic cotton sleepsuits; bedside crib; white-noise soother; blackout nursery blinds
  | swaddle pouch; bassinet with gentle sway
  => Everyone sleeps till six; Soft on new skin; Settle them without a sound
  | Peaceful nights at last; Drift off, tiny one
- wooden stacking toys; toddler balance bike; sensory play kit; picture-book bundle
  | magnetic tiles; pretend market stall
  => Little hands, big discoveries; Screen-free afternoons; Learning disguised as fun
  | Build, topple, giggle; Imagination included

pets / family
- grain-free puppy food; fresh dog dinners; dental chews; salmon training treats
  | air-dried raw bites; joint-care kibble
  => Tails wag at the bowl; Portioned for your breed; Shinier coat in a month
  | Good boy, better supper; Less itching, more fetch
- cat scratching tower; self-cleaning litter tray; feather wand toys; calming pheromone diffuser
  | window perch; kitten starter hamper
  => Save your sofa from claws; No more scooping; Purrs guaranteed
  | A throne for your tabby; Keep whiskers busy
- no-pull harness; GPS collar; dog walking service; cosy orthopaedic bed
  | hands-free leash; boarding with sitters
  => Walks without tugging; Find your runaway in seconds; Someone kind while you travel
  | Rest for old hips; Adventures for four paws

skincare / style
- vitamin C serum; hyaluronic moisturiser; retinal night cream; niacinamide drops
  | peptide eye gel; ceramide barrier balm
  => Glow by Friday; Plump, dewy, calm; Fade dark spots
  | Wake up looking rested; Softens fine lines
- long-wear foundation; cream blush stick; volumising mascara; refillable lipstick
  | tinted brow gel; blurring setting powder
  => Stays put through dancing; Your shade, out of forty; Five-minute face
  | Flutter, flush, done; Cheeks like a cold walk
- curl-defining cream; bond-repair mask; ionic hair dryer; beard oil
  | scalp scrub; heatless wave kit
  => Frizz meets its match; Salon shine at home; Tame and tidy whiskers
  | Bouncy ringlets all day; Rescue bleached ends

fashion / style
- organic denim jeans; linen summer shirt; recycled wool coat; everyday cotton tee
  | hemp chore jacket; pleated wide-leg trousers
  => Wear it for ten years; Cut to flatter, made fairly; The one you reach for
  | A wardrobe that lasts; Fewer, better clothes
- automatic dive watch; gold vermeil hoops; birthstone pendant; signet ring
  | skeleton-dial timepiece; lab-grown diamond band
  => Say yes with something lasting; Sparkle every day; Engraved with your initials
  | Tick-tock for a lifetime; Wrapped in velvet
- suede ankle boots; white leather sneakers; structured handbag; full-grain belt
  | hand-stitched loafers; crossbody satchel
  => Goes with everything; Better with every scuff; From desk to dinner
  | Resoled, never replaced; Step out polished

sleep / wellbeing
- hybrid memory-foam mattress; adjustable pillow; weighted blanket; cooling bamboo sheets
  | latex topper; goose-down duvet
  => A hundred nights to try; Drop off faster; Wake without aches
  | Like lying on a cloud; Cool side, all night long
- guided meditation app; breathing trainer; sunrise alarm clock; silent retreat
  | mindfulness journal; binaural soundscapes
  => Quiet a racing mind; Ten minutes of stillness; Rise gently with the light
  | Let the thoughts drift by; Peace, on schedule
- magnesium complex; daily multivitamin; omega-three capsules; gut-friendly probiotics
  | adaptogen gummies; sunshine vitamin spray
  => Top up what winter takes; Feel like yourself again; One a day, that is all
  | Happy belly, happy head; Immunity in a bottle
"""
